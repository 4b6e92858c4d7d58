"""A data set seen through timm's random transforms, each image with numbers that depend on nothing but the seed."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from .dataset import ImageDataset
from .generators import generators_kept, seed_generators
from .image_transforms import ImageTransforms
from .resized import Resized, mix


class Augmented(Resized):
    """Random crops in place of the central square, policies, colour and erasing; what they leave alone is as in `Resized`.

    They draw from the global generators, which are seeded for each item from (seed, epoch, index) and are afterwards as
    before.

    Args:
        transforms: which of them.
        mean, std: (C,) of the model's input.
        hflip, pad: as in `Resized`; random crops, which are elsewhere anyway, take no pad.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        size: int,
        transforms: ImageTransforms,
        *,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        hflip: bool = False,
        pad: float = 0.0,
        seed: int = 0,
        epoch: int = 0,
    ):
        self.crops = transforms.crop_scale is not None
        if self.crops and pad:
            raise ValueError(f"pad and crop_scale are two ways to crop at random: set one, got {pad} and both")
        interpolation = "bilinear" if self.crops else transforms.in_training
        options: dict[str, Any] = {
            "interpolation": interpolation,
            "repeats": transforms.aug_repeats,
            "seed": seed,
            "epoch": epoch,
        }
        super().__init__(dataset, size, hflip=hflip, pad=pad, **options)
        self.transform = transforms.training(size, mean, std, hflip)
        self.seed, self.epoch = seed, epoch

    def show(self, images: list[Tensor], indices: list[int]) -> Tensor:
        begun: Sequence[Tensor] = images if self.crops else super().show(images, indices).unbind()
        shown = []
        with generators_kept():
            for image, index in zip(begun, indices, strict=True):
                seed_generators(mix(self.seed, self.epoch, f"transforms {index}"))
                shown.append(self.transform(image))
        return torch.stack(shown)
