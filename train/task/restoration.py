"""The dense task: an image without the noise that was added to it, which the model answers on the image's own grid.

The output (B, C, height, width) is the residual in units of the pixels' range: restored = image / 255 + output, not clipped.
The targets (B, C, height, width) are clean - noisy in grey levels, see data/noisy.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from s4nd.ops.precision import widest

from .base import Task, resize, same_shape
from .metric import PSNR

CHANNELS = 3  # of the images, and so of the residual


class Restoration(Task):
    """Mean squared error of the restored image, and its peak signal-to-noise ratio, -10 log10(MSE) dB with white at 1.

    The PSNR is that of each image, then the mean; of an image that is restored exactly it is infinite.
    """

    name = "restoration"
    metric = PSNR
    output = "residual"
    without_model = "noisy"

    def names(self, classes: Sequence[str]) -> list[str]:
        """None: what the data has classes of is of no matter."""
        return []

    def shape(self, classes: int, height: int, width: int) -> tuple[int, ...]:
        return CHANNELS, height, width

    def criterion(self, label_smoothing: float = 0.0, reduction: str = "mean") -> nn.Module:
        if label_smoothing:
            raise ValueError(f"label_smoothing is of labels, and restoration has none, got {label_smoothing}")
        return ResidualError(reduction=reduction)

    def scores(self, output: Tensor, targets: Tensor) -> Tensor:
        exact = widest(output.device)
        error = same_shape(output, targets).to(exact) - targets.to(exact) / 255
        return -10 * error.square().flatten(1).mean(1).log10()

    def control(self, model: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
        """As of a task of labels, and the restored image is resized back: bicubic, with antialiasing where that is coarser."""
        small = resize(images, size)
        output = model(small)
        restored = small.to(output) / 255 + output
        back = TF.resize(restored, list(images.shape[2:]), TF.InterpolationMode.BICUBIC, antialias=True)
        return back - images.to(output) / 255

    def about(self, majority: list[int], labels: np.ndarray) -> dict[str, str | float]:
        return {"task": self.name}


class ResidualError(nn.MSELoss):
    """torch's, of an output in units of the pixels' range and targets in grey levels."""

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        return super().forward(same_shape(output, targets), targets.to(output) / 255)


class Unchanged(nn.Module):
    """The restoration that needs no model: (B, 3, height, width) -> a residual of zeros."""

    pretrained_cfg = {"mean": (0.0,) * CHANNELS, "std": (1.0,) * CHANNELS, "input_size": (CHANNELS, 1, 1)}  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
