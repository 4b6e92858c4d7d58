"""The weights that a run begins with: of an image model, for a video model, or of the same model trained on something else."""

from pathlib import Path

from torch import Tensor, nn

from s4nd.models import inflate

from .checkpoint import load_model, load_weights, read_tensors
from .config import Config


def initialise(model: nn.Module, config: Config) -> str | None:
    """Fill a fresh model as config.init says; what was done, for the log, or None if it says nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or its weights do not fit; the message names the key of the config and the tensors.
    """
    for key, fill in (("inflate", _inflate), ("weights", _load)):
        path = getattr(config.init, key)
        if path is not None:
            try:
                return f"init.{key}={path}: {fill(model, path, config)}"
            except ValueError as error:
                raise ValueError(f"init.{key}={path}: {error}") from None
    return None


def _inflate(model: nn.Module, path: str, config: Config) -> str:
    return str(inflate(_source(path), model))


def _load(model: nn.Module, path: str, config: Config) -> str:
    source, frames = _source(path), {}
    if hasattr(model, "num_frames"):
        frames["num_frames"] = model.num_frames
    if isinstance(source, nn.Module):
        if hasattr(source, "set_input_size"):  # re-sampled for the size of this run
            source.set_input_size(img_size=config.stages[0].size, **frames)
        source = source.state_dict()
    own, classifier = model.state_dict(), model.pretrained_cfg["classifier"]
    other = [
        key
        for key, value in own.items()
        if key.startswith(f"{classifier}.") and key in source and _differ_in_classes(value, source[key])
    ]
    load_weights(model, {**source, **{key: own[key] for key in other}}, Path(path).name)
    if hasattr(model, "set_input_size"):  # bare weights say themselves what they were trained on
        model.set_input_size(img_size=config.stages[0].size, **frames)
    left = f"; as drawn, for other classes: {', '.join(other)}" if other else ""
    return f"{len(own) - len(other)} tensors{left}"


def _differ_in_classes(a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == b.shape[1:] and len(a) != len(b)


def _source(path: str) -> nn.Module | dict[str, Tensor]:
    """The model of a checkpoint of `s4nd train`, the state dict of another safetensors file."""
    tensors, metadata = read_tensors(path)
    return load_model(path)[0] if "config" in metadata else tensors
