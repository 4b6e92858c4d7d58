"""Decoding of image files from outside, which are never trusted."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")  # few decoders, none of which starts a program or reads another file
MAX_PIXELS = 2**26  # 200 MB as RGB; read from the header, before a small file can swell to gigabytes


class BadImage(ValueError):
    """An image that cannot be read.

    Attributes:
        path: where it is: a file, or a file and a row.
        reason: what is wrong with it.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(str(path), reason)  # both in args, so that it survives pickling on its way from a worker
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: str | Path) -> Tensor:
    """`decode` of a file.

    Raises:
        BadImage: as `decode`, or the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadImage(path, _reason(error)) from error
    return decode(data, path)


def decode(data: bytes, path: str | Path) -> Tensor:
    """A JPEG, PNG or WebP image as (3, H, W) uint8. Grey is replicated, a palette applied, transparency dropped.

    Args:
        data: the content of the file.
        path: what to call it in errors.

    Raises:
        BadImage: not an image, damaged, truncated, or of more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(path, f"{width} x {height} pixels, more than the {MAX_PIXELS} allowed")
            pixels = np.array(_to_rgb(image))
    except BadImage:
        raise
    except Exception as error:  # of damaged data the decoders raise OSError, SyntaxError, struct.error, and more
        raise BadImage(path, _reason(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 instead of scaling
        grey = np.array(image, dtype=np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of the formats {', '.join(FORMATS)}"
    return f"{type(error).__name__}: {error}"
