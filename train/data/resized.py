"""A data set seen at one size: rendered from the base image, with flips and shifts that depend on nothing but the seed."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from .dataset import ImageDataset
from .image_transforms import central_crop
from .images import BadImage


class Resized(Dataset):
    """The central square of each image, resized to `size` (bilinear with antialiasing), then flipped and shifted.

    What happens to image `i` follows from (seed, epoch, i) alone, not from workers, batches or what was read before. With
    `repeats` an image is there several times: the r-th repetition of image `i` is item `i + r * len(dataset)`.

    Args:
        dataset: images at their native size.
        size: side of the rendered images, in pixels.
        hflip: mirror every other image, at random.
        pad: largest shift along each axis, as a fraction of the side; what comes in from outside is the image's reflection.
        interpolation, crop_pct: of `ImageTransforms`; any but these resize the shorter side by timm's transform of evaluation.
        repeats: of each image, flipped and shifted independently.
        seed, epoch: of the random numbers.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        size: int,
        *,
        hflip: bool = False,
        pad: float = 0.0,
        interpolation: str = "bilinear",
        crop_pct: float = 1.0,
        repeats: int = 1,
        seed: int = 0,
        epoch: int = 0,
    ):
        if size < 1 or not 0 <= pad <= 1:
            raise ValueError(f"need size >= 1 and 0 <= pad <= 1, got size={size}, pad={pad}")
        self.dataset, self.size, self.repeats = dataset, size, repeats
        self.classes, self.labels = dataset.classes, dataset.labels
        self.render = partial(render, size=size)
        if (interpolation, crop_pct) != ("bilinear", 1):
            self.render = partial(_render_each, transform=central_crop(size, interpolation, crop_pct))
        self.augments = hflip or pad > 0
        if self.augments:
            generator = torch.Generator().manual_seed(mix(seed, epoch, "augmentation"))
            numbers = torch.rand(len(self), 3, generator=generator)  # drawn even if unused: pad does not alter flips
            most = round(pad * size)
            self.flip = (numbers[:, 0] < 0.5) & hflip  # (len,)
            self.shift = (numbers[:, 1:] * (2 * most + 1)).long().clamp(max=2 * most) - most  # (len, 2) pixels

    def __len__(self) -> int:
        return self.repeats * len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int | np.ndarray]:
        """Image (3, size, size) uint8 and label.

        Raises:
            BadImage: it cannot be read.
        """
        item = self.__getitems__([index])[0]
        if isinstance(item, BadImage):
            raise item
        return item

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int | np.ndarray] | BadImage]:
        """Several at once, which is what a loader asks for; one that cannot be read is represented by its error."""
        items: list = [self._read(index) for index in indices]
        good = [i for i, item in enumerate(items) if not isinstance(item, BadImage)]
        if not good:
            return items
        images = self.show([items[i][0] for i in good], [indices[i] for i in good])
        for i, image in zip(good, images.unbind(), strict=True):
            items[i] = image, items[i][1]
        return items

    def show(self, images: list[Tensor], indices: list[int]) -> Tensor:
        """What becomes of the base images (3, H_i, W_i) of these items: (len(images), 3, size, size)."""
        shown = self.render(images)
        if self.augments:
            chosen = torch.tensor(indices)
            shown = flip_and_shift(shown, self.flip[chosen], self.shift[chosen])
        return shown

    def _read(self, index: int) -> tuple[Tensor, int | np.ndarray] | BadImage:
        try:
            return self.dataset[index % len(self.dataset)]
        except BadImage as error:
            return error


def mix(seed: int, epoch: int, purpose: str) -> int:
    """A 63-bit seed for each (seed, epoch, purpose); a sum of them would be the same for (0, 1) and (1, 0)."""
    numbers = [seed, epoch, *purpose.encode()]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def render(images: list[Tensor], size: int) -> Tensor:
    """Central squares of images (3, H_i, W_i) uint8, resized to (len(images), 3, size, size) uint8.

    The square is cut first: the same picture as after resizing the shorter side, without the memory for the rest, which
    in a strip of 1 x 60,000 pixels is large. Channels lie last in memory, as in decoded images: resizing is 3 times faster.
    """
    rendered = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    groups: dict[int, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(min(image.shape[1:]), []).append(i)
    for side, group in groups.items():  # images of one size are resized together: a call costs more than a small image
        squares = torch.stack([_central_square(images[i], side).permute(1, 2, 0) for i in group]).permute(0, 3, 1, 2)
        rendered[group] = TF.resize(squares, [size, size], TF.InterpolationMode.BILINEAR, antialias=True)
    return rendered


def _render_each(images: list[Tensor], transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Images (3, H_i, W_i) by a transform to one size, stacked."""
    return torch.stack([transform(image) for image in images])


def _central_square(image: Tensor, side: int) -> Tensor:
    """The middle (3, side, side) of an image (3, H, W)."""
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    return image[:, top : top + side, left : left + side]


def flip_and_shift(images: Tensor, flip: Tensor, shift: Tensor) -> Tensor:
    """Mirror left and right the images (B, 3, L, L) where flip (B,), and move each by shift (B, 2) pixels down and right."""
    L = images.shape[-1]
    source = torch.arange(L) - shift[..., None]  # (B, 2, L): from where each row and column is taken
    source = (L - 1) - ((L - 1) - source.abs()).abs()  # reflected at the first and at the last pixel
    rows, columns = source.unbind(1)
    columns = torch.where(flip[:, None], L - 1 - columns, columns)
    batch, channel = torch.arange(len(images))[:, None, None, None], torch.arange(3)[:, None, None]
    return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
