"""`last.state`: everything that a run needs to go on, in one file, so that a kill cannot leave half of it.

The one before it is kept as `previous.state`, for the case that the newest is damaged all the same: by a disk, or a copy that
was cut short. All randomness of a step is drawn from numbers (see step.py), so no state of a random generator is kept.
"""

import io
import logging
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import FORMAT_VERSION
from .config import Config, config_from_dict, config_to_dict
from .data.names import difference
from .files import write_atomically

STATE_FILE, PREVIOUS_FILE = "last.state", "previous.state"
# May differ between a run and its continuation: where it runs and writes, not what it computes. The data may have moved.
EXEMPT = {
    "out",
    "resume",
    "device",
    "data.root",
    "data.class_map",
    "data.workers",
    "data.prefetch",
    "log_every",
    "wandb",
    "save_every_steps",
    "save_every_minutes",
}

logger = logging.getLogger("s4nd")


@dataclass
class Position:
    """How far an epoch has come: optimizer steps made, batches taken, and the images of this process with their losses' sum."""

    steps: int = 0
    batches: int = 0  # more than the steps by those of which no image could be read
    images: int = 0
    loss_sum: float = 0.0


def save_state(folder: Path, config: Config, state: dict[str, Any]) -> None:
    """Write the state of a run atomically; `state` holds tensors and plain containers. The one before becomes the previous."""
    buffer = io.BytesIO()
    torch.save({**state, "format_version": FORMAT_VERSION, "config": config_to_dict(config)}, buffer)
    path = folder / STATE_FILE

    def keep_previous() -> None:
        if path.exists():
            os.replace(path, folder / PREVIOUS_FILE)

    write_atomically(path, buffer.getvalue(), before=keep_previous)


def _load_state(folder: Path, config: Config) -> dict[str, Any]:
    """The state of the run in `folder`, if it is a run of this config. The last stage may have got more epochs.

    Where the newest is damaged or missing, the one before it, with a warning.

    Raises:
        FileNotFoundError: no run there.
        ValueError: damaged files, or a run of another config; the message lists the keys that differ.
    """
    path, previous = folder / STATE_FILE, folder / PREVIOUS_FILE
    if not path.is_file() and not previous.is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: {path} does not exist")
    try:
        state = _read(path)
    except (ValueError, FileNotFoundError) as error:
        if not previous.is_file():
            raise
        logger.warning("%s; the state before it is taken, %s, and what came after it is trained anew", error, previous)
        state = _read(previous)
    kept = config_to_dict(config_from_dict(state["config"], str(path)))  # with the keys that are new since
    differing = _config_differences(kept, config_to_dict(config))
    if differing:
        raise ValueError(f"{folder} holds a run with another config: {'; '.join(differing)}")
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    try:  # of bytes: reading a file that is cut short, torch raises errors of the system
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path}: not the state of a run of this version of s4nd")
    return state


def check_classes(state: dict[str, Any], classes: Sequence[str], task: str) -> None:
    """The data must have the task and the classes of the run, by name and in its order. An older run kept neither: its task
    was single-label, and its classes are a warning.

    Raises:
        ValueError: it has not; says what differs.
    """
    kept, kept_task = state.get("classes"), state.get("task", "single-label")
    if kept_task != task:
        raise ValueError(f"the run to resume is {kept_task}, and the data is {task}")
    if kept is None:
        logger.warning(
            "the run to resume is of an older version, which did not keep the names of its classes; whether they are those of "
            "the data cannot be told"
        )
        return
    odd = difference(kept, classes, "the run", "the data")
    if odd:
        raise ValueError(f"the run to resume has other classes than the data: {odd}")


def find_state(config: Config) -> dict[str, Any] | None:
    """The state that config.resume asks to continue from, None for a new run.

    Raises:
        ValueError: config.out holds a run that would be overwritten; otherwise as `_load_state`.
    """
    out = config.folder
    source = out if config.resume is None or config.resume == "auto" else Path(config.resume)
    occupied = (out / STATE_FILE).exists() or (out / PREVIOUS_FILE).exists()
    if occupied and (config.resume is None or source.resolve() != out.resolve()):
        raise ValueError(f"{out} already holds a run: continue it with resume=auto, or choose another out=")
    return _load_state(source, config) if occupied or config.resume not in (None, "auto") else None


def carry_over(config: Config, state: dict[str, Any]) -> None:
    """The files of a run that is continued in another folder, so that this one holds all that a run leaves."""
    out = config.folder
    if config.resume is None or config.resume == "auto" or (source := Path(config.resume)).resolve() == out.resolve():
        return
    for name in ("best.safetensors", "last.safetensors", "log.jsonl", "steps.jsonl"):
        if (source / name).is_file():
            write_atomically(out / name, (source / name).read_bytes())
    save_state(out, config, state)


def _config_differences(old: dict, new: dict) -> list[str]:
    """'key: old, now new' for every key that differs and must not."""
    before, after = flatten(old), flatten(new)
    exempt = EXEMPT | {f"stages.{len(new['stages']) - 1}.epochs"}
    keys = sorted((before.keys() | after.keys()) - exempt)
    return [f"{k}: {before.get(k)}, now {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings and lists by their dotted keys."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if children is None:
        return {prefix: tree}
    return {k: v for key, child in children for k, v in flatten(child, f"{prefix}.{key}".lstrip(".")).items()}
