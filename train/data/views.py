"""What is seen of a data set: its images or clips rendered at a size, augmented anew in each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

from .augmented import Augmented
from .clips import Clips, ClipSampling
from .dataset import ImageDataset
from .image_transforms import ImageTransforms
from .images import BadImage
from .noisy import Noisy
from .resized import Resized
from .video_sets import VideoDataset

View = Resized | Clips | Noisy


@dataclass(frozen=True)
class Rendering:
    """What becomes of images or videos.

    Attributes:
        hflip, pad: used in training only; pad not for videos.
        transforms: of images.
        normalisation: mean and std of the model's input, (C,) each, which random erasing and policies fill with.
        sampling: of the clips, for a data set of videos; None for images.
        noise: its standard deviation, in grey levels of 255, of images only; with it the items are those of `Noisy`. In
            training it follows from the seed, the epoch and the number of the item, in testing from the size and that number.

    Raises:
        ValueError: transforms or noise, which are of images, beside clips.
    """

    hflip: bool = False
    pad: float = 0.0
    transforms: ImageTransforms = ImageTransforms()  # noqa: RUF009
    normalisation: tuple[Sequence[float], Sequence[float]] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    sampling: ClipSampling | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        if self.sampling is not None and self.noise is not None:
            raise ValueError(f"noise is of images; clips are sampled, got {self.noise}")
        if self.sampling is not None and self.transforms != ImageTransforms():
            raise ValueError(f"transforms are of images; clips are sampled, got {self.transforms}")

    def training(self, dataset: ImageDataset | VideoDataset, size: int, seed: int, epoch: int) -> View:
        """The view of an epoch of training."""
        view: Any = self._drawn(dataset, size, seed, epoch)
        return view if self.noise is None else Noisy(view, self.noise, "training", seed, epoch)

    def _drawn(self, dataset: Any, size: int, seed: int, epoch: int) -> Resized | Clips:
        drawn: dict[str, Any] = {"hflip": self.hflip, "seed": seed, "epoch": epoch}
        if self.sampling is not None:
            return Clips(dataset, size, self.sampling, train=True, **drawn)
        transforms = self.transforms
        if transforms.changes_images:
            mean, std = self.normalisation
            return Augmented(dataset, size, transforms, mean=mean, std=std, pad=self.pad, **drawn)
        interpolation, repeats = transforms.in_training, transforms.aug_repeats
        return Resized(dataset, size, interpolation=interpolation, repeats=repeats, pad=self.pad, **drawn)

    def testing(self, dataset: ImageDataset | VideoDataset, size: int) -> View:
        """The view that every evaluation has."""
        shown: Any = dataset  # videos, if they are sampled, or else images
        if self.sampling is not None:
            return Clips(shown, size, self.sampling, train=False)
        rendered: dict[str, Any]
        rendered = {"interpolation": self.transforms.interpolation, "crop_pct": self.transforms.crop_pct}
        view = Resized(shown, size, **rendered)
        return view if self.noise is None else Noisy(view, self.noise, f"testing at {size}")


class Views(Dataset):
    """The views of one data set by epoch and size. Its items are asked for as (epoch, size, index), those of a batch all of
    one epoch and size, so that the workers of a loader, which hold it, live on when the epoch changes.

    Args:
        train: as in training, or as in every evaluation.
        seed: of the random numbers of training.
    """

    def __init__(self, dataset: ImageDataset | VideoDataset, rendering: Rendering, *, train: bool, seed: int = 0):
        self.dataset, self.rendering, self.train, self.seed = dataset, rendering, train, seed
        self.epoch = 0
        self.made: dict[int, View] = {}

    def at(self, epoch: int, size: int) -> View:
        """One of them; those of another epoch are forgotten."""
        if epoch != self.epoch:
            self.epoch, self.made = epoch, {}
        if size not in self.made:
            render = self.rendering
            self.made[size] = (
                render.training(self.dataset, size, self.seed, epoch)
                if self.train
                else render.testing(self.dataset, size)
            )
        return self.made[size]

    def __getitems__(self, items: list[tuple[int, int, int]]) -> Sequence[tuple[Tensor, Any] | BadImage]:
        """Images (3, size, size) uint8 or clips, and labels or residuals, or the errors of those that cannot be read."""
        epoch, size, _ = items[0]
        return self.at(epoch, size).__getitems__([index for *_, index in items])
