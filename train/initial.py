"""The weights that a run begins with: of an image model, for a video model, or of the same model trained on something else.

They are a file, or a tag of those that ship with the package, such as s4nd_iso_tiny.cifar10.

A classifier is worth its names alone: it is taken for the same classes, each row by its name, and stays as drawn otherwise.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import is_model_pretrained
from torch import Tensor, nn

from s4nd.models import inflate
from s4nd.models.shipped import shipped_file, shipped_tags

from .checkpoint import load_model, load_weights, read_tensors
from .config import Config
from .data.names import difference, order_by_name
from .model import bring_to
from .task import TASKS


def initialise(model: nn.Module, config: Config, classes: Sequence[str], task: str = "single-label") -> str | None:
    """Fill a fresh model as config.init says; what was done, for the log, or None if it says nothing.

    Args:
        classes: names of the model's classes.
        task: name of what it is to learn, a key of TASKS: the classifier of another one means something else.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or its weights do not fit; the message names the key of the config and the tensors.
    """
    for key, fill in (("inflate", _inflate), ("weights", _load)):
        path = getattr(config.init, key)
        if path is not None:
            try:
                return f"init.{key}={path}: {fill(model, path, config, classes, task)}"
            except ValueError as error:
                raise ValueError(f"init.{key}={path}: {error}") from None
    if "." in config.model.name and is_model_pretrained(config.model.name):
        return f"model.name={config.model.name}: weights as drawn; init.weights names those to begin with"
    return None


def _inflate(model: nn.Module, path: str, config: Config, classes: Sequence[str], wanted_task: str) -> str:
    weights, found, task = _source(path)
    drawn = {key: value.clone() for key, value in model.state_dict().items() if _of_classifier(key, model)}
    report = inflate(weights, model)
    taken = [key for key in report.copied if key in drawn]
    order, note = _rows(found, task, classes, wanted_task)
    if order is None:
        report = report._replace(
            copied=[key for key in report.copied if key not in taken], initial=[*report.initial, *taken]
        )
    own = model.state_dict()
    for key in taken:
        own[key].copy_(drawn[key] if order is None else _in_order(own[key], order))
    return f"{report}{note}"


def _load(model: nn.Module, path: str, config: Config, classes: Sequence[str], wanted_task: str) -> str:
    source, found, task = _source(path)
    frames: dict[str, Any] = {}
    if hasattr(model, "num_frames"):
        frames["num_frames"] = model.num_frames
    if isinstance(source, nn.Module):
        bring_to(source, config.stages[0], **frames)
        source = source.state_dict()
    own = model.state_dict()
    taken = [
        key
        for key, value in own.items()
        if _of_classifier(key, model) and key in source and source[key].shape[1:].numel() == value.shape[1:].numel()
    ]
    order, note = _rows(found, task, classes, wanted_task)
    rows = {key: own[key] if order is None else _in_order(source[key], order) for key in taken}
    load_weights(model, {**source, **rows}, Path(path).name)
    bring_to(model, config.stages[0], **frames)  # bare weights say themselves what they were trained on
    left = [] if order is not None else taken
    return f"{len(own) - len(left)} tensors{note}" + (f": {', '.join(left)}" if left else "")


def _rows(found: list[str] | None, task: str, wanted: Sequence[str], wanted_task: str) -> tuple[list[int] | None, str]:
    """Which rows of a classifier of the classes `found` are those of `wanted`, None for none; and a note for the report."""
    if found is None:
        return None, "; the file does not name its classes; classifier as drawn"
    if task != wanted_task:
        return None, f"; the file is {task} and the data is {wanted_task}; classifier as drawn"
    order = order_by_name(wanted, found)
    if order is None:
        odd = difference(found, wanted, "the file", "the data")
        return None, f"; {odd}; classifier as drawn, for other classes"
    return order, "" if order == sorted(order) else "; rows of the classifier taken by name"


def _in_order(value: Tensor, order: list[int]) -> Tensor:
    """A tensor of the classifier with its rows in another order, if they are of classes."""
    return value[order] if len(value) == len(order) else value


def _of_classifier(key: str, model: nn.Module) -> bool:
    cfg: Any = model.pretrained_cfg
    parts = cfg["classifier"] or ()  # of a distilled model several
    return any(key.startswith(f"{part}.") for part in ([parts] if isinstance(parts, str) else parts))


def _source(path: str) -> tuple[nn.Module | dict[str, Tensor], list[str] | None, str]:
    """The model of a checkpoint of `s4nd train`, or the state dict of another safetensors file or shipped tag; its classes if
    it says, of restoration none, and its task, which is single-label unless it says otherwise."""
    tensors, metadata = read_tensors(shipped_file(path) if path in shipped_tags() else path)
    if "config" in metadata:
        model, _, meta = load_model(path)
        return model, meta.classes, meta.task
    task = metadata.get("task", "single-label")
    if task not in TASKS:
        raise ValueError(f"the metadata's task must be {' or '.join(TASKS)}, got {task[:80]!r}")
    if "classes" not in metadata:
        return tensors, [] if task == "restoration" else None, task
    try:
        classes = json.loads(metadata["classes"])
    except json.JSONDecodeError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"the metadata's classes must be a JSON list of names, got {metadata['classes'][:80]!r}")
    return tensors, classes, task
