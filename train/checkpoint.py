"""Checkpoints: weights in safetensors with the config inside. Nothing is ever unpickled from them.

`last.safetensors` and `best.safetensors` hold the weights to use (the averaged ones where the run averages) under the
model's own keys, so that timm reads them too: `timm.create_model(name, checkpoint_path="best.safetensors")`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from s4nd.models.names import counted

from .config import Config, config_from_dict, config_to_dict
from .files import write_atomically
from .model import build_model
from .task import TASKS

__all__ = ["Meta", "load_model", "read_checkpoint"]

FORMAT_VERSION = 1
# What torch.save writes, a zip file, and bare pickles of protocols 2 to 5.
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself besides its config."""

    epoch: int  # epochs trained, over all stages
    stage: int  # index of the stage that the weights are from
    accuracy: float  # the task's metric on `split` at that stage's size: an accuracy, 0 to 1, or a PSNR in dB
    classes: list[str]  # of a multi-label task its attributes, of restoration none
    weights: str  # "model", or "ema" for averaged weights
    split: str = "test"  # or "validation": what the accuracy is of
    best: bool = False  # of its stage; chosen by the accuracy
    task: str = (
        "single-label"  # logits of a softmax; "multi-label", each of a sigmoid; or "restoration", see train/task
    )
    majority: list[int] = field(default_factory=list)  # of a multi-label task: see MultiLabel.majority


META_TYPES: dict[str, Any] = {
    "epoch": int,
    "stage": int,
    "accuracy": (int, float),
    "classes": list,
    "weights": str,
    "split": str,
    "best": bool,
    "task": str,
    "majority": list,
}
SPLITS = ("test", "validation")
META_SINCE: dict[str, Any] = {
    "split": "test",
    "best": False,
    "task": "single-label",
    "majority": [],
}  # what older checkpoints do not say


def save_checkpoint(path: Path, weights: dict[str, Tensor], config: Config, meta: Meta) -> None:
    """Write weights, config and meta to one safetensors file, atomically."""
    about = {"format_version": FORMAT_VERSION, "config": config_to_dict(config), **asdict(meta)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    metadata = {key: json.dumps(value) for key, value in about.items()}
    write_atomically(path, to_safetensors(tensors, metadata=metadata))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], Config, Meta]:
    """Weights, validated config and meta of a checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle, a damaged file, not a checkpoint of `s4nd train`, or a config that is not valid.
    """
    tensors, metadata = read_tensors(path)
    return tensors, *_parse_metadata(metadata, str(path))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle, or a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return unwrapped({key: file.get_tensor(key) for key in file.keys()}), metadata  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(_why_unreadable(path, error)) from None


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the model itself, if they were saved inside DistributedDataParallel or torch.compile."""
    names = {key: [part for part in key.split(".") if part != "_orig_mod"] for key in tensors}
    while names and all(parts[0] == "module" and len(parts) > 1 for parts in names.values()):
        names = {key: parts[1:] for key, parts in names.items()}
    return {".".join(parts): tensors[key] for key, parts in names.items()}


def load_model(path: str | Path) -> tuple[nn.Module, Config, Meta]:
    """The model of a checkpoint, built from the config inside, in eval mode on the CPU; what its layers were trained on is
    among its weights.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`, or the weights are not of that model.
    """
    tensors, config, meta = read_checkpoint(path)
    model = build_model(config, len(meta.classes), meta.stage)
    load_weights(model, tensors, str(path))
    return model.eval(), config, meta


def load_weights(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load every tensor of a model; ValueError lists the keys that are missing, unexpected or of another shape."""
    own = model.state_dict()
    # A layer says itself what it assumes where older weights lack its extra state.
    missing = [key for key in own if key not in tensors and not key.endswith("_extra_state")]
    unexpected = [key for key in tensors if key not in own]
    misshaped = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in tensors and own[key].shape != tensors[key].shape
    ]
    if problems := counted({"missing": missing, "unexpected": unexpected, "of another shape": misshaped}):
        raise ValueError(f"{source}: the weights are of another model than {type(model).__name__}: {problems}")
    model.load_state_dict(tensors)


def _parse_metadata(metadata: dict[str, str], source: str) -> tuple[Config, Meta]:
    try:
        about: dict[str, Any] = {key: json.loads(metadata[key]) for key in metadata if key != "format"}
        version = about["format_version"]
    except (KeyError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{source}: not a checkpoint of `s4nd train`: it says nothing of its config") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{source}: format version {version}, this version of s4nd reads {FORMAT_VERSION}")
    config = config_from_dict(about.get("config"), source)
    about = META_SINCE | about
    for name, kind in META_TYPES.items():
        if not isinstance(about.get(name), kind):
            raise ValueError(f"{source}: the metadata's {name} is {about.get(name)!r}")
    meta = Meta(**{name: about[name] for name in META_TYPES})
    if meta.split not in SPLITS:
        raise ValueError(f"{source}: the accuracy must be of {' or '.join(SPLITS)}, got {meta.split!r}")
    if not 0 <= meta.stage < len(config.stages):
        raise ValueError(f"{source}: stage {meta.stage} of a config with {len(config.stages)} stages")
    if not all(isinstance(name, str) for name in meta.classes):
        raise ValueError(f"{source}: classes must be names, got {meta.classes!r}")
    if meta.task not in TASKS:
        raise ValueError(f"{source}: the task must be {' or '.join(TASKS)}, got {meta.task!r}")
    if (meta.task == "restoration") != (config.data.noise is not None) or (meta.task == "restoration" and meta.classes):
        said = f"data.noise={config.data.noise} and {len(meta.classes)} classes"
        raise ValueError(f"{source}: restoration goes with data.noise and without classes, got {meta.task} with {said}")
    answers = len(meta.classes) if meta.task == "multi-label" else 0
    if len(meta.majority) != answers or not all(value in (0, 1) for value in meta.majority):
        raise ValueError(f"{source}: a {meta.task} majority must be {answers} values of 0 and 1, got {meta.majority!r}")
    return config, meta


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(PICKLE_STARTS):
        return f"{path}: refused: a pickle can run code when it is loaded; a checkpoint must be safetensors"
    return f"{path}: damaged, or no safetensors file: {error}"
