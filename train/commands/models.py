"""`s4nd models`: the names that `timm.create_model` knows after `import s4nd.models`, and what each of them is.

Models are built on the meta device, so nothing is allocated or drawn to count their parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import get_pretrained_cfg, model_entrypoint
from torch import nn

import s4nd.models
from s4nd.models.convnext3d import ConvNeXt3d

__all__ = ["Listed", "list_registered", "table"]


@dataclass(frozen=True)
class Listed:
    """What a name stands for.

    Attributes:
        name: of `timm.create_model`; MODEL.TAG names weights that ship with s4nd.
        parameters: how many numbers are learnt, with `classes` classes.
        classes: of the classifier that it is created with.
        input_size: (channels, height, width) of images, (channels, frames, height, width) of clips, that the weights were
            trained at, or else that the model is created for. frames is None where any number is taken as it comes.
        weights: `pretrained=True` loads some.
    """

    name: str
    parameters: int
    classes: int
    input_size: tuple[int | None, ...]
    weights: bool


def list_registered(patterns: Sequence[str] = (), pretrained: bool = False) -> list[Listed]:
    """The models that s4nd.models registers, and the tags of weights that ship, in alphabetical order.

    Args:
        patterns: shell patterns of names, as in `timm.list_models`: "*convnext*"; a name needs to fit one of them. None: all.
        pretrained: only what `pretrained=True` loads weights of.

    Raises:
        ValueError: none fits.
    """
    names = [name for name in timm.list_models([*patterns], pretrained=pretrained, include_tags=True) if _is_ours(name)]
    if not names:
        what = "no weights that ship with s4nd fit" if pretrained else "no model of s4nd fits"
        given = " or ".join(map(repr, patterns or ["*"]))
        raise ValueError(f"{what} {given}; a pattern fits whole names, such as '*convnext*'")
    return [_listed(name) for name in names]


def table(rows: Sequence[Listed]) -> str:
    """A line for each, below a heading."""
    cells = [("name", "parameters", "classes", "input", "weights")]
    for row in rows:
        size = " x ".join("any" if n is None else str(n) for n in row.input_size)
        cells.append((row.name, f"{row.parameters:,}", str(row.classes), size, "shipped" if row.weights else "-"))
    name, parameters, classes, grid, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(f"{n:<{name}}  {p:>{parameters}}  {c:>{classes}}  {s:<{grid}}  {w}" for n, p, c, s, w in cells)


def _is_ours(name: str) -> bool:
    return model_entrypoint(name).__module__.startswith(f"{s4nd.models.__name__}.")


def _listed(name: str) -> Listed:
    model: Any = timm.create_model(name, device="meta")
    cfg: Any = get_pretrained_cfg(name)  # of every registered name there is one
    parameters = sum(p.numel() for p in model.parameters())
    return Listed(name, parameters, model.num_classes, _input_size(model, cfg.input_size), cfg.has_weights)


def _input_size(model: nn.Module, image: tuple[int, int, int]) -> tuple[int | None, ...]:
    if not isinstance(model, ConvNeXt3d):
        return tuple(image)
    channels, *size = image
    return channels, getattr(model, "num_frames", None), *size
