"""Images with the noise of a camera, and what has to be added to be rid of it: the data of the task "restoration"."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .images import BadImage
from .resized import Resized, mix


class Noisy(Dataset):
    """White Gaussian noise on the images of a view, after all that the view makes of them; its labels are not looked at.

    The noise is of the light: one normal number for each pixel, the same for its three channels. So grey images stay grey:
    of independent noise their channels' mean would have 1 / sqrt(3) of the deviation. The noisy image is rounded and clipped
    to the values of a pixel, and the residual is of that image: it is not quite Gaussian near black and white.

    Args:
        view: of images.
        deviation: of the noise, in grey levels of 255.
        purpose, seed, epoch: what the noise of an item follows from, beside its index.
    """

    def __init__(self, view: Resized, deviation: float, purpose: str, seed: int = 0, epoch: int = 0):
        self.view, self.deviation = view, deviation
        self.purpose, self.seed, self.epoch = purpose, seed, epoch

    def __len__(self) -> int:
        return len(self.view)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor] | BadImage]:
        """Noisy images (3, S, S) uint8 and their residuals, clean - noisy, (3, S, S) int16; or errors, as of the view."""
        items = self.view.__getitems__(indices)
        return [
            item if isinstance(item, BadImage) else self._add(item[0], index)
            for item, index in zip(items, indices, strict=True)
        ]

    def _add(self, clean: Tensor, index: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng(mix(self.seed, self.epoch, f"noise of {self.purpose}: {index}"))
        noise = torch.from_numpy(generator.standard_normal(tuple(clean.shape[1:]), dtype=np.float32))
        noisy = (clean + self.deviation * noise).round_().clamp_(0, 255).to(torch.uint8)
        return noisy, clean.to(torch.int16) - noisy.to(torch.int16)
