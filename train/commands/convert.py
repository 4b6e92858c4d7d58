"""A checkpoint of the reference implementation as a safetensors file that timm loads into a model of s4nd.models."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from s4nd.models.names import listed
from s4nd.models.reference_weights import convert_reference, unused_keys

from ..files import write_atomically
from ..registry import LOADING_ARGS, check_registered

__all__ = ["Conversion", "convert_checkpoint"]

REFUSED_ARGS = (*LOADING_ARGS, "features_only")  # the last makes another kind of model


@dataclass(frozen=True)
class Conversion:
    """A file that was written."""

    path: Path
    model: str
    args: dict[str, Any]  # of timm.create_model, to build the model that the weights are of
    tensors: int
    unused: list[str]  # keys of the reference that it does not use itself


def convert_checkpoint(reference: str | Path, out: str | Path, model: str, args: Sequence[str] = ()) -> Conversion:
    """Write the weights of a reference checkpoint under the names of a model here.

    Nothing in the file is ever executed: tensors are all that is read. `out` holds no config of a run: it is for timm
    (`timm.create_model(model, checkpoint_path=out, **args)`); the name and the args are in its metadata.

    Args:
        reference: .safetensors, or what torch.save wrote: a state dict, or a checkpoint with one under "state_dict".
        out: .safetensors.
        model: name in timm's registry.
        args: key=value for `timm.create_model`. S4ND models get the reference's align=edge and resample=continuous,
            unless these are among them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged or holds more than tensors, or weights that are not of this model.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"the file to write must be named *.safetensors, got {out}")
    # The reference samples a kernel at the edges of its pixels, and anew at every size: so its weights were trained.
    own = {"align": "edge", "resample": "continuous"} if model.startswith("s4nd_") else {}
    built = own | _parsed(args)
    network = _build(model, built)
    state = read_reference(reference)
    try:
        weights = convert_reference(state, network)
        unused = unused_keys(state, network)
    except ValueError as error:
        raise ValueError(f"{reference}: {error}") from error
    write_atomically(out, to_safetensors(weights, metadata={"model": model, "args": json.dumps(built)}))
    return Conversion(out, model, built, len(weights), unused)


def read_reference(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file; Python objects in it are refused, not loaded.

    Raises:
        FileNotFoundError, ValueError: as `convert_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    tree = _read(path)
    state = tree.get("state_dict", tree) if isinstance(tree, dict) else tree
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path}: holds no state dict, neither alone nor under 'state_dict'")
    others = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise ValueError(f"{path}: a state dict has names and tensors, got others under {listed(others)}")
    return state


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: refused: damaged, or with Python objects besides tensors{_objects(path)}, which run code when they are "
            "loaded. If you trust it, save its state dict alone where it comes from: "
            "torch.save(torch.load('x.ckpt', weights_only=False)['state_dict'], 'x.pt')"
        ) from None
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file: {_first_line(error)}") from None
    except Exception as error:  # whatever a parser meets in bytes that anybody may have written
        raise ValueError(f"{path}: damaged, or not a file of torch.save: {_first_line(error)}") from None


def _objects(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged file, or one without names
        return ""
    return f" ({listed(sorted(names))})" if names else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _parsed(pairs: Sequence[str]) -> dict[str, Any]:
    for pair in pairs:
        if not pair.partition("=")[0].isidentifier() or "=" not in pair:
            raise ValueError(f"an argument of the model must be key=value, got {pair!r}")
    try:
        args: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"not valid YAML in {' '.join(pairs)}: {_first_line(error)}") from None
    for name in args:
        if name in REFUSED_ARGS:
            raise ValueError(f"{name} cannot be set: the weights come from the reference's checkpoint")
    return args


def _build(name: str, args: dict[str, Any]) -> torch.nn.Module:
    check_registered(name, "model")
    try:
        return timm.create_model(name, device="meta", **args)
    except TypeError as error:
        raise ValueError(f"model {name} does not take {args}: {error}") from error
