"""Metric and loss of a model over a loader, summed over the processes of a distributed run."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s4nd import frozen
from s4nd.ops.precision import widest

from .model import to_input
from .processes import sum_over_processes
from .task import TASKS, Task

__all__ = ["Score", "evaluate"]


class Score(NamedTuple):
    """The task's metric and loss, means over all images or videos, and the number of these."""

    accuracy: float  # or what else the metric is
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    at_once: int = 128,
    task: Task = TASKS["single-label"],
    control: int | None = None,
) -> Score:
    """Score a model on batches of uint8 images (B, 3, H, W) and targets of the task. Leaves the model in eval mode.

    Or on all clips (K, 3, T, H, W) of one video and its label (1,): the video's probabilities are the means over its clips,
    of which the model sees `at_once` at a time.

    Args:
        control: the trained size, to which the images are resized on their way to the model; see `Task.control`.

    Raises:
        ValueError: there was no image, or the labels are of another task.
    """
    model.eval()
    criterion = task.criterion(reduction="sum")

    def output(images: Tensor) -> Tensor:
        return model(to_input(images, model, device)).float()

    answer = output if control is None else partial(task.control, output, size=control)
    totals, count = torch.zeros(2, dtype=widest(device), device=device), 0  # nothing waits for the device
    with frozen(model):
        for images, labels in batches:
            labels = labels.to(device, non_blocking=True)
            if images.ndim == 4:
                logits = answer(images)
            else:
                parts = [answer(clips) for clips in images.split(at_once)]
                logits = task.over_clips(torch.cat(parts))
            answers = labels.numel() // len(labels)  # for each image
            totals += torch.stack([task.scores(logits, labels).sum(), criterion(logits, labels).to(totals) / answers])
            count += len(labels)
    metric, loss, seen = sum_over_processes([*totals.tolist(), count], device)
    if not seen:
        raise ValueError("there is no image to evaluate on")
    return Score(metric / seen, loss / seen, int(seen))
