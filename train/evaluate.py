"""Accuracy and loss of a model over a loader, summed over the processes of a distributed run."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd import frozen
from s4nd.ops.precision import widest

from .model import to_input
from .processes import sum_over_processes


class Score(NamedTuple):
    """Means over all images or videos: accuracy (top-1, 0 to 1), loss (cross entropy in nats), and their number."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, at_once: int = 128
) -> Score:
    """Score a model on batches of uint8 images (B, 3, H, W) and labels (B,). Leaves the model in eval mode.

    Or on all clips (K, 3, T, H, W) of one video and its label (1,): the video's probabilities are the means over its clips,
    of which the model sees `at_once` at a time.

    Raises:
        ValueError: there was no image.
    """
    model.eval()
    totals = torch.zeros(3, dtype=widest(device), device=device)
    with frozen(model):
        for images, labels in batches:
            labels = labels.to(device, non_blocking=True)
            if images.ndim == 4:
                logits = model(to_input(images, model, device)).float()
            else:
                parts = [model(to_input(clips, model, device)).float() for clips in images.split(at_once)]
                logits = torch.cat(parts).log_softmax(-1).logsumexp(0, keepdim=True) - math.log(
                    len(images)
                )  # their mean
            correct = (logits.argmax(-1) == labels).sum()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            totals += torch.stack([correct.to(totals), loss.to(totals), totals.new_tensor(len(labels))])
    correct, loss, count = sum_over_processes(totals, device)
    if not count:
        raise ValueError("there is no image to evaluate on")
    return Score(correct / count, loss / count, int(count))
