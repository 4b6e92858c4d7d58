"""What a model is trained to answer: one of the classes, or each of them by itself. The labels of the data say which.

single-label    labels (B,), one class each; the logits (B, K) are those of a softmax
multi-label     labels (B, K) of 0 and 1, attributes that an image has or has not; each logit is a sigmoid's

The engine, the evaluation and what they print ask the task and do not know which it is. B images or videos, K classes.
"""

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn


class Task:
    """Loss, mixing, scoring and words of one kind of labels.

    Attributes:
        name: in checkpoints and logs.
        metric: the figure, 0 to 1, that chooses best.safetensors, in words.
    """

    name: str
    metric: str

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        """The loss of logits (B, K) and targets, labels or mixed ones, in nats; its mean or sum over what `right` counts."""
        raise NotImplementedError

    def mixup(self, num_classes: int, **options: Any) -> Mixup:
        """timm's Mixup, from labels to targets (B, K); the criterion smooths them."""
        raise NotImplementedError

    def over_clips(self, logits: Tensor) -> Tensor:
        """Logits (1, K) of the mean probabilities of the clips of one video, (clips, K)."""
        raise NotImplementedError

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which answers are right, of the shape of the labels; its mean is the metric."""
        raise NotImplementedError

    def majority(self, labels: np.ndarray) -> list[int]:
        """The answer that needs no image, of the labels of the training data; empty where nobody asks for one."""
        return []

    def about(self, majority: list[int], labels: np.ndarray) -> dict[str, str | float]:
        """What the log says of the task beside each accuracy on these labels."""
        return {}


class SingleLabel(Task):
    """One class for each image: cross entropy and top-1 accuracy."""

    name = "single-label"
    metric = "accuracy"

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction=reduction)

    def mixup(self, num_classes: int, **options: Any) -> Mixup:
        return Mixup(**options, label_smoothing=0.0, num_classes=num_classes)

    def over_clips(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).logsumexp(0, keepdim=True) - math.log(len(logits))

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _same_shape(logits.argmax(-1), labels) == labels


class MultiLabel(Task):
    """Each attribute by itself: binary cross entropy, and the mean over images and attributes of being right.

    An attribute is answered with yes where its logit is above 0, that is, its probability above one half.
    """

    name = "multi-label"
    metric = "mean accuracy over the attributes"

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        return BinaryCrossEntropy(label_smoothing, reduction)

    def mixup(self, num_classes: int, **options: Any) -> Mixup:
        return Mixup(**options, label_smoothing=0.0, num_classes=num_classes, multi_label=True)

    def over_clips(self, logits: Tensor) -> Tensor:
        yes, no = (F.logsigmoid(sign * logits).logsumexp(0, keepdim=True) for sign in (1, -1))
        return yes - no

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (_same_shape(logits, labels) > 0) == (labels > 0)

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


TASKS: dict[str, Task] = {task.name: task for task in (SingleLabel(), MultiLabel())}


def task_of(labels: np.ndarray) -> Task:
    """The task of a data set with these labels: (len,) of classes, or (len, K) of 0 and 1."""
    return TASKS["multi-label" if labels.ndim == 2 else "single-label"]


def agreement(majority: list[int], labels: np.ndarray) -> float:
    """The metric of answering `majority` (K,) for every image, on labels (len, K), whether or not the images can be read."""
    return float((labels == np.array(majority)).mean())


def _same_shape(answers: Tensor, labels: Tensor) -> Tensor:
    if answers.shape != labels.shape:  # they might broadcast
        raise ValueError(
            f"answers {tuple(answers.shape)} for labels {tuple(labels.shape)}: the labels are of another task"
        )
    return answers
