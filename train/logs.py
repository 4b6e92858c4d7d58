"""What a run leaves to read: log.jsonl (an epoch a line), steps.jsonl (a step of every `log_every`), TensorBoard, wandb."""

import json
import sys
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from .config import Config
from .files import naming, write_atomically
from .task import METRICS, Metric
from .tracking import Mirror


class RunLog:
    """Appends one record per epoch, and records of steps.

    Args:
        folder: the run directory.
        epochs_done, steps_done: of the run that is continued; what was logged after them, before a kill, is dropped.
        config: of the run, for wandb if it is asked for.
    """

    def __init__(self, folder: Path, epochs_done: int = 0, steps_done: int = 0, config: Config | None = None):
        self.path, self.steps_path = folder / "log.jsonl", folder / "steps.jsonl"
        for path, key, done in ((self.path, "epoch", epochs_done), (self.steps_path, "step", steps_done)):
            kept = [line for line in _lines(path) if (record := _parse(line)) and record[key] <= done]
            write_atomically(path, "".join(line + "\n" for line in kept).encode())
        self.board = SummaryWriter(str(folder), purge_step=epochs_done + 1)
        self.step_board = SummaryWriter(str(folder / "steps"), purge_step=steps_done + 1)
        self.mirror = None if config is None or config.wandb is None else Mirror(folder, config)

    def write(self, record: dict) -> None:
        """Log one epoch; `record` holds plain numbers, or texts, and its `epoch`, counted from 1."""
        self._append(self.path, record)
        for key, value in record.items():
            add = self.board.add_text if isinstance(value, str) else self.board.add_scalar
            add(key, value, record["epoch"])
        self.board.flush()
        if self.mirror is not None:
            self.mirror.log(record, "epoch")

    def write_step(self, record: dict) -> None:
        """Log one step; `record` holds plain numbers and its `step`, counted from 1 over the whole run."""
        self._append(self.steps_path, record)
        for key, value in record.items():
            self.step_board.add_scalar(f"step/{key}", value, record["step"])
        if self.mirror is not None:
            self.mirror.log({f"step/{key}": value for key, value in record.items()}, "step/step")

    def _append(self, path: Path, record: dict) -> None:
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self.board.close()
        self.step_board.close()
        if self.mirror is not None:
            self.mirror.close()


def memory_mib(device: torch.device) -> float:
    """The most memory so far: of the device, or of the process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def opening(about: dict, metric: Metric, split: str) -> str:
    """What is said before the first epoch: how clips are scored, and what the figures are of another task than single-label.

    Args:
        about: what every record holds beside the numbers of its epoch.
        metric, split: what the figures are, and of which images.
    """
    lines = [about["protocol"]] if "protocol" in about else []
    if "majority" in about:
        without = f"the more frequent value of each in the training data gives {metric.show(about['majority'])}"
        lines.append(f"{about['task']}: {metric.name}; {without} of the {split} images")
    if "noise" in about:
        noise = f"white noise of a standard deviation of {about['noise']:g} grey levels"
        lines.append(f"{about['task']}: {metric.name} in {metric.unit}, mean over the {split} images; {noise}")
    return "\n".join(lines)


def summary_line(record: dict, epochs: int) -> str:
    """One epoch's record for people."""
    unit = "clips" if "clips_per_second" in record else "images"
    metric = next(metric for key, metric in METRICS.items() if {f"test_{key}", f"validation_{key}"} & record.keys())
    split = "validation" if f"validation_{metric.key}" in record else "test"
    beside = f" (majority {metric.show(record['majority'])})" if "majority" in record else ""
    return (
        f"epoch {record['epoch']}/{epochs}  {record['size']} px  loss {record['train_loss']:.3g}  "
        f"{split} {metric.show(record[f'{split}_{metric.key}'])}{beside}  lr {record['lr']:.2g}  {record['seconds']:.1f} s  "
        f"{record[f'{unit}_per_second']:.0f} {unit}/s"
        + (f"  {record['unreadable']} could not be read" if "unreadable" in record else "")
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _parse(line: str) -> dict | None:
    """The record of a line, None for one that a kill cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
