"""What the engine, the evaluation and what they print ask of a task: they do not know which one it is.

Shapes: B images or videos, K classes or attributes, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from timm.data import Mixup
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from .metric import Metric


class Task:
    """Loss, mixing, scoring and words of one kind of targets.

    Attributes:
        name: in checkpoints and logs.
        metric: the figure that chooses best.safetensors.
        output: what a model's output is called.
        without_model: what the figure of an answer that needs no model is called; "" where nobody asks for it.
    """

    name: str
    metric: Metric
    output: str = "logits"
    without_model: str = ""

    def names(self, classes: Sequence[str]) -> list[str]:
        """What a model's outputs are called, of data with these classes."""
        return list(classes)

    def shape(self, classes: int, height: int, width: int) -> tuple[int, ...]:
        """Of a model's output for one image of this size, or clip."""
        return (classes,)

    def check(self, output: Tensor, classes: int, size: int, name: str) -> None:
        """A model of this name must answer an image of size x size pixels, or a clip, with what the task needs.

        Raises:
            ValueError: it does not; says both shapes.
        """
        needed = self.shape(classes, size, size)
        if tuple(output.shape) != (1, *needed):
            grid = ", on the image's own grid, as of s4nd_iso_tiny or conv_iso_tiny" if len(needed) > 1 else ""
            shape = ", ".join(map(str, needed))
            raise ValueError(f"{self.name} needs an output (B, {shape}){grid}; {name} gives {tuple(output.shape)}")

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        """The loss of a model's output and the targets, labels or mixed ones; its mean or sum over their numbers."""
        raise NotImplementedError

    def mixup(self, num_classes: int, **options: Any) -> Mixup:
        """timm's Mixup, from labels to targets (B, K); the criterion smooths them."""
        raise NotImplementedError

    def over_clips(self, logits: Tensor) -> Tensor:
        """Logits (1, K) of the mean probabilities of the clips of one video, (clips, K)."""
        raise NotImplementedError

    def scores(self, output: Tensor, targets: Tensor) -> Tensor:
        """(B,) the metric of each image; that of several is the mean."""
        raise NotImplementedError

    def control(self, model: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
        """The honest rival of running at an unseen size: the output on images that are resized to the trained one.

        Args:
            model: from pixels to its output.
            images: uint8 (B, 3, height, width), or clips (B, 3, T, height, width).
            size: the trained one.
        """
        return model(resize(images, size))

    def majority(self, labels: np.ndarray) -> list[int]:
        """The answer that needs no image, of the labels of the training data; empty where nobody asks for one."""
        return []

    def about(self, majority: list[int], labels: np.ndarray) -> dict[str, str | float]:
        """What the log says of the task beside each figure on these labels."""
        return {}


def resize(images: Tensor, size: int) -> Tensor:
    """Images or clips (..., height, width) to (..., size, size), bilinear with antialiasing."""
    return TF.resize(images, [size, size], TF.InterpolationMode.BILINEAR, antialias=True)


def same_shape(output: Tensor, targets: Tensor) -> Tensor:
    """The output, if it has the shape of the targets: they might broadcast."""
    if output.shape != targets.shape:
        raise ValueError(
            f"answers {tuple(output.shape)} for labels {tuple(targets.shape)}: the labels are of another task"
        )
    return output
