"""The tasks of labels.

single-label    labels (B,), one class each; the logits (B, K) are those of a softmax
multi-label     labels (B, K) of 0 and 1, attributes that an image has or has not; each logit is a sigmoid's

Losses are in nats. B images or videos, K classes or attributes.
"""

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from s4nd.ops.precision import widest

from .base import Task, same_shape
from .metric import ACCURACY, ATTRIBUTES


class _Labels(Task):
    """Answers that are right or wrong."""

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which answers are right, of the shape of the labels; its mean is the metric."""
        raise NotImplementedError

    def scores(self, output: Tensor, targets: Tensor) -> Tensor:
        right = self.right(output, targets)
        return right.reshape(len(right), -1).to(widest(right.device)).mean(1)


class SingleLabel(_Labels):
    """One class for each image: cross entropy and top-1 accuracy."""

    name = "single-label"
    metric = ACCURACY

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction=reduction)

    def mixup(self, num_classes: int, **options: Any) -> Mixup:
        return Mixup(**options, label_smoothing=0.0, num_classes=num_classes)

    def over_clips(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).logsumexp(0, keepdim=True) - math.log(len(logits))

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return same_shape(logits.argmax(-1), labels) == labels


class MultiLabel(_Labels):
    """Each attribute by itself: binary cross entropy, and the mean over images and attributes of being right.

    An attribute is answered with yes where its logit is above 0, that is, its probability above one half.
    """

    name = "multi-label"
    metric = ATTRIBUTES
    without_model = "majority"

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        return BinaryCrossEntropy(label_smoothing, reduction)

    def mixup(self, num_classes: int, **options: Any) -> Mixup:
        return Mixup(**options, label_smoothing=0.0, num_classes=num_classes, multi_label=True)

    def over_clips(self, logits: Tensor) -> Tensor:
        yes, no = (F.logsigmoid(sign * logits).logsumexp(0, keepdim=True) for sign in (1, -1))
        return yes - no

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (same_shape(logits, labels) > 0) == (labels > 0)

    def majority(self, labels: np.ndarray) -> list[int]:
        """The more frequent value of each attribute; 0 where they are equally many."""
        return (2 * labels.sum(0, dtype=np.int64) > len(labels)).astype(int).tolist()

    def about(self, majority: list[int], labels: np.ndarray) -> dict[str, str | float]:
        return {"task": self.name, "majority": agreement(majority, labels)}


class BinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """torch's, for labels of any type, smoothed by s as those of two classes: y becomes (1 - s) y + s / 2."""

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits, (1 - self.label_smoothing) * targets.to(logits) + self.label_smoothing / 2)


def agreement(majority: list[int], labels: np.ndarray) -> float:
    """The metric of answering `majority` (K,) for every image, on labels (len, K), whether or not the images can be read."""
    return float((labels == np.array(majority)).mean())
