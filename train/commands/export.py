"""A trained model at one size of images or clips as a file that runs without this library: ONNX, or torch.export's .pt2.

Every S4ND layer becomes plain convolutions (s4nd/nn/plan.py); the batch stays free. The file holds, as metadata, what a
caller must know to use it: whether the logits are of a softmax (task: single-label) or each of a sigmoid (multi-label), the
names of the classes, the size, mean and std of the input, and how an image or a clip is made. A model that restores images
(restoration) gives a residual in place of logits; `noise` is the standard deviation that it was trained for, and `restored` the
image without it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..checkpoint import Meta, load_model
from ..config import Config, DataConfig
from ..model import channels, check_runs, normalisation
from ..task import TASKS

__all__ = ["Export", "export_model"]

TOLERANCE = 1e-4  # of the file's output, relative to the largest
OLDEST_OPSET = 18  # of torch's exporter
INSTALL = "pip install 's4nd[onnx]'"
IMAGES: Mapping[str, Any] = {}  # have no time


@dataclass(frozen=True)
class Export:
    """A file that was written."""

    path: Path
    size: tuple[int, int]  # height, width
    frames: int | None  # of a clip; None for images
    output: str  # what it is called: logits, or residual
    difference: float | None  # of the file's output from the model's, relative to the largest; None: not checked


def export_model(
    checkpoint: str | Path,
    out: str | Path,
    size: Sequence[int] | None = None,
    opset: int | None = None,
    frames: int | None = None,
) -> Export:
    """Write the model of a checkpoint as a function of x -> logits (B, classes) or residual, B free, and check the file.

    x is images (B, C, height, width), or of a model trained on videos clips (B, C, frames, height, width).

    Args:
        checkpoint: of `s4nd train`.
        out: .onnx or .pt2.
        size: one number or (height, width), in pixels; None for the trained size.
        opset: of the ONNX operators; None for the exporter's choice.
        frames: of a clip, whose duration stays; None for the trained number. Videos only.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; no folder for `out`, another suffix, frames of images, a size at which
            the model does not run, an opset that the exporter cannot give, or a file that does not compute what it does.
        ImportError: ONNX's packages are missing.
    """
    out = Path(out)
    _check_out(out, opset)
    model, config, meta = load_model(checkpoint)
    height, width = _height_width(config.stages[meta.stage].size if size is None else size)
    time = _time(config.data, frames)
    task = TASKS[meta.task]
    grid = [time["frames"], height, width] if time else [height, width]
    x = torch.randn(3, channels(model), *grid, generator=torch.Generator().manual_seed(0))
    expected = check_runs(model, x, config.model.name)
    about = described(model, config, meta, (height, width), time)
    fused = reparameterize_model(model)
    with torch.no_grad():
        fused(x)  # its plans take this size; it is traced with another batch than the check's
        program = torch.export.export(fused, (x[:2],), dynamic_shapes=({0: Dim("batch")},))
    if out.suffix == ".onnx":
        name = "clips" if time else "images"
        _write_onnx(program, out, about, opset, name, task.output)
        found = _onnx_output(out, x, name) if find_spec("onnxruntime") else None
    else:
        torch.export.save(program, out, extra_files=about)
        found = torch.export.load(out).module()(x)
    difference = None if found is None else ((found - expected).abs().max() / expected.abs().max()).item()
    if difference is not None and not difference <= TOLERANCE:
        raise ValueError(
            f"{out}: its output differs from the model's by {difference:.1e} of the largest: do not use it"
        )
    return Export(out, (height, width), time.get("frames"), task.output, difference)


def described(
    model: nn.Module, config: Config, meta: Meta, size: tuple[int, int], time: Mapping[str, Any] = IMAGES
) -> dict[str, str]:
    """The metadata of a file: what a caller must know to use the model; numbers and lists as JSON.

    Args:
        size: height, width.
        time: how a clip is made; nothing for images.
    """
    mean, std = normalisation(model)
    rendering = {} if time else {"crop_pct": config.data.crop_pct, "interpolation": config.data.interpolation}
    about = {
        "model": config.model.name,
        "task": meta.task,
        "classes": meta.classes,
        "size": size,
        "mean": mean,
        "std": std,
        **time,
        **rendering,
        **_restoring(config.data),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def _time(data: DataConfig, frames: int | None) -> dict[str, Any]:
    """How a clip is made from a video, before it is normalised; nothing for images."""
    sampling = data.sampling()
    if sampling is None:
        if frames is not None:
            raise ValueError(f"frames is for videos, and the model was trained on the images of {data.name}")
        return {}
    frames = sampling.frames if frames is None else frames
    if frames < 1:
        raise ValueError(f"frames must be a positive number, got {frames}")
    return {"frames": frames, "seconds": sampling.seconds, "gamma": sampling.gamma, "motion": sampling.motion}


def _restoring(data: DataConfig) -> dict[str, Any]:
    """How the output of a model that restores images is to be used; nothing for others."""
    return {} if data.noise is None else {"noise": data.noise, "restored": "image / 255 + residual"}


def _check_out(out: Path, opset: int | None) -> None:
    if out.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"the output must end in .onnx or .pt2, got {out}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} for {out.name}")
    if out.suffix == ".pt2":
        if opset is not None:
            raise ValueError(f"opset is for .onnx, got {out}")
        return
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(f"opset must be at least {OLDEST_OPSET}, got {opset}")
    missing = [package for package in ("onnx", "onnxscript") if not find_spec(package)]
    if missing:
        raise ImportError(f"ONNX export needs {' and '.join(missing)}: {INSTALL}")


def _height_width(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"size must be one positive number or height and width, got {size}")
    return sides[0], sides[-1]


def _write_onnx(
    program: ExportedProgram, out: Path, about: dict[str, str], opset: int | None, name: str, output: str
) -> None:
    names: dict[str, Any] = {"input_names": [name], "output_names": [output], "dynamic_shapes": ({0: "batch"},)}
    onnx: Any = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **names)
    found = onnx.model.opset_imports[""]
    if opset not in (None, found):  # the exporter goes on with another one
        raise ValueError(f"the ONNX exporter cannot give opset {opset}, it gave {found}")
    onnx.model.metadata_props.update(about)
    onnx.save(out)


def _onnx_output(path: Path, x: Tensor, name: str) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])
