"""Accuracy and loss of a model over a loader, summed over the processes of a distributed run."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s4nd import frozen
from s4nd.ops.precision import widest

from .model import to_input
from .processes import sum_over_processes
from .task import TASKS, Task


class Score(NamedTuple):
    """The task's metric (0 to 1) and loss (nats), means over all images or videos, and the number of these."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    at_once: int = 128,
    task: Task = TASKS["single-label"],
) -> Score:
    """Score a model on batches of uint8 images (B, 3, H, W) and labels of the task. Leaves the model in eval mode.

    Or on all clips (K, 3, T, H, W) of one video and its label (1,): the video's probabilities are the means over its clips,
    of which the model sees `at_once` at a time.

    Raises:
        ValueError: there was no image, or the labels are of another task.
    """
    model.eval()
    criterion = task.criterion(reduction="sum")
    totals, count = torch.zeros(2, dtype=widest(device), device=device), 0  # nothing waits for the device
    with frozen(model):
        for images, labels in batches:
            labels = labels.to(device, non_blocking=True)
            if images.ndim == 4:
                logits = model(to_input(images, model, device)).float()
            else:
                parts = [model(to_input(clips, model, device)).float() for clips in images.split(at_once)]
                logits = task.over_clips(torch.cat(parts))
            right, loss = task.right(logits, labels).sum(), criterion(logits, labels)
            answers = labels.numel() // len(labels)  # for each image
            totals += torch.stack([right, loss]).to(totals) / answers
            count += len(labels)
    right, loss, count = sum_over_processes([*totals.tolist(), count], device)
    if not count:
        raise ValueError("there is no image to evaluate on")
    return Score(right / count, loss / count, int(count))
