"""What timm's parts make of an image: random crops, policies, colour and erasing in training, a central crop in testing.

Shapes: C channels of the model's input, S the size of a stage.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import Compose
from torchvision.transforms.functional import resize

from .policy import check_policy, repair

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")
ERASED = ("const", "rand", "pixel")
LONGEST = 8  # shorter sides that are resized at test time; of a longer strip the middle: the rest would take memory for nothing


@dataclass(frozen=True)
class ImageTransforms:
    """What becomes of an image, in timm's words.

    Attributes:
        interpolation: of resizing, always with antialiasing.
        train_interpolation: in training; None: the same; "random": bilinear or bicubic, of random crops.
        crop_pct: at test time the shorter side is resized to S / crop_pct, and the middle cropped.
        crop_scale: (low, high) share of the area that a random crop takes in training; None: the central square.
        crop_ratio: (low, high) of width / height of a random crop; None: 3/4 to 4/3.
        auto_augment: RandAugment, AugMix or AutoAugment by timm's string, such as rand-m9-mstd0.5-inc1 or augmix-m3-w3.
        color_jitter: brightness, contrast and saturation are multiplied by 1 - this to 1 + this.
        reprob: probability of random erasing.
        remode: what is erased becomes the mean colour ("const"), one normal colour ("rand"), or noise ("pixel").
        recount: most rectangles that are erased of an image.
        aug_repeats: how often an image is in an epoch, which has as many images in all, of fewer kinds: repeated augmentation.

    Raises:
        ValueError: a value that is out of range, or one that would do nothing without another.
    """

    interpolation: str = "bilinear"
    train_interpolation: str | None = None
    crop_pct: float = 1.0
    crop_scale: Sequence[float] | None = None
    crop_ratio: Sequence[float] | None = None
    auto_augment: str | None = None
    color_jitter: float | None = None
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    aug_repeats: int = 1

    def __post_init__(self) -> None:
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if self.train_interpolation is not None:
            _one_of("train_interpolation", self.train_interpolation, (*INTERPOLATIONS, "random"))
        _one_of("remode", self.remode, ERASED)
        if not 0.1 <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be in [0.1, 1], got {self.crop_pct}")
        _check_range("crop_scale", self.crop_scale, 1)
        _check_range("crop_ratio", self.crop_ratio, float("inf"))
        if self.auto_augment is not None:
            check_policy(self.auto_augment)
        if self.color_jitter is not None and not 0 <= self.color_jitter < float("inf"):
            raise ValueError(f"color_jitter must be at least 0, got {self.color_jitter}")
        if not 0 <= self.reprob <= 1:
            raise ValueError(f"reprob must be in [0, 1], got {self.reprob}")
        for key in ("recount", "aug_repeats"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.crop_scale is None and self.crop_ratio is not None:
            raise ValueError("crop_ratio is of random crops: it needs crop_scale, such as [0.08, 1]")
        if self.crop_scale is None and self.train_interpolation == "random":
            raise ValueError("train_interpolation=random is for random crops: it needs crop_scale, such as [0.08, 1]")
        for key, default in (("remode", "pixel"), ("recount", 1)):
            if not self.reprob and getattr(self, key) != default:
                raise ValueError(f"{key} is of random erasing: it needs a reprob above 0")

    @property
    def in_training(self) -> str:
        """The interpolation of training."""
        return self.train_interpolation or self.interpolation

    @property
    def changes_images(self) -> bool:
        """Whether anything is drawn for an image in training, flips, shifts and repetitions aside."""
        return bool(self.crop_scale or self.auto_augment or self.color_jitter or self.reprob)

    def training(
        self, size: int, mean: Sequence[float], std: Sequence[float], hflip: bool
    ) -> Callable[[Tensor], Tensor]:
        """(3, H, W) -> (3, S, S), both uint8, drawing from the global generators; without random crops H = W = S is needed.

        Args:
            mean, std: (C,) of the model's input: policies fill with the one, erasing with numbers of both.
            hflip: mirror every other random crop.
        """
        scale: Any = self.crop_scale  # lists will do, and None
        ratio: Any = self.crop_ratio
        jitter: Any = self.color_jitter or None
        crop, change, final = transforms_imagenet_train(
            size,
            scale=scale,
            ratio=ratio,
            hflip=0.5 if hflip else 0.0,
            color_jitter=jitter,
            force_color_jitter=True,  # timm else leaves it out where there is a policy
            auto_augment=self.auto_augment,
            interpolation=self.in_training,
            mean=tuple(mean) * (3 // len(mean)),
            normalize=False,
            separate=True,
        )
        if self.auto_augment:
            repair(change.transforms[0])
        begin = [_to_pil]
        if self.crop_scale:
            whole, *flip = crop.transforms
            begin = [_Crop(size, whole.scale, whole.ratio, self.in_training), *flip]
        parts = [*begin, *change.transforms, *final.transforms] if self.crop_scale or change.transforms else []
        if self.reprob:
            parts.append(
                _Erasing(RandomErasing(self.reprob, mode=self.remode, max_count=self.recount, device="cpu"), mean, std)
            )
        return Compose(parts)


class _Crop(RandomResizedCropAndInterpolation):
    """timm's random crop, which is of PIL images, of a tensor (3, H, W): no more than is seen becomes a PIL image."""

    def __call__(self, image: Tensor) -> Image.Image:
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        several = isinstance(self.interpolation, tuple)
        interpolation = random.choice(self.interpolation) if several else self.interpolation
        return resize(_to_pil(image[:, top : top + height, left : left + width]), self.size, interpolation)


class _Erasing:
    """timm's random erasing, which is for normalised images, on uint8 images (3, H, W).

    Here and not on the device, where timm has it: there it would draw, batch by batch, from generators that every device and
    every process has for itself, and the pixels of an image would not follow from (seed, epoch, index). The price is that
    what fills a rectangle is rounded and clipped to the 256 values of a pixel: about 3 % of ImageNet's normal numbers.

    Args:
        mean, std: (C,), of a grey model one each: then what is erased is grey.
    """

    def __init__(self, erase: RandomErasing, mean: Sequence[float], std: Sequence[float]):
        self.erase = erase
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        """In place."""
        self.erase(_Normalised(image, self.mean, self.std))
        return image


class _Normalised:
    """What timm's random erasing needs to know of a normalised image (C, H, W); what it writes goes into the uint8 image."""

    dtype = torch.float32

    def __init__(self, image: Tensor, mean: Tensor, std: Tensor):
        self.image, self.mean, self.std = image, mean, std

    def size(self) -> tuple[int, ...]:
        return len(self.mean), *self.image.shape[1:]

    def __setitem__(self, place: tuple[slice, ...], values: Tensor) -> None:
        self.image[place] = (255 * (values * self.std + self.mean)).round_().clamp_(0, 255).byte()


def central_crop(size: int, interpolation: str, crop_pct: float) -> Callable[[Tensor], Tensor]:
    """timm's transform of evaluation: (3, H, W) -> (3, S, S), both uint8; interpolation and crop_pct as above."""
    transform = transforms_imagenet_eval(size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    return Compose([_middle, _to_pil, *transform.transforms])


def _to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _middle(image: Tensor) -> Tensor:
    """At most LONGEST shorter sides of an image (3, H, W)."""
    most = LONGEST * min(image.shape[1:])
    for axis, n in enumerate(image.shape[1:], 1):
        image = image.narrow(axis, max(0, (n - most) // 2), min(n, most))
    return image


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{key} must be one of {', '.join(known)}, got {value!r}")


def _check_range(key: str, value: Sequence[float] | None, most: float) -> None:
    if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1] <= most and value[1] < float("inf")):
        needed = "at most 1" if most == 1 else "finite"
        raise ValueError(f"{key} must be two numbers above 0, low and high, {needed}, got {list(value)}")
