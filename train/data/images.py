"""Decoding of image files from outside, which are never trusted."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffTags
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # none starts a program or reads another file
MAX_PIXELS = 2**26  # 200 MB as RGB; read from the header, before a small file can swell to gigabytes
GREY_BITS = (8, 10, 12, 14, 16)  # of what cameras and scanners write into 16
TIFF = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}


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
    """An image file as (3, H, W) uint8, as a viewer shows it on a white page.

    JPEG, PNG, WebP, BMP, GIF or TIFF; of several frames or pages the first one. It is turned and mirrored as its EXIF says,
    or as it is stored if that cannot be read. What is transparent lets white through, however the file says so: by an alpha
    channel, in the palette, or by one grey or colour. Grey is replicated, a palette applied.

    A file of 16-bit grey does not say how many bits its values use: black to white is 0 to 2^n - 1, with the least n of
    8, 10, 12, 14 and 16 that holds the largest visible value. Of 16-bit colour, and grey with alpha,
    the upper 8 bits are used.

    Args:
        data: the content of the file.
        path: what to call it in errors.

    Raises:
        BadImage: not an image, damaged, truncated, of more than MAX_PIXELS pixels, or of grey values that are floating-point
            numbers, negative or above 65535.
    """
    try:
        # Decoders warn of metadata, most of which is not used here. What is left of a warning about size is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, path)
                pixels = np.array(_to_rgb(image, path))
    except BadImage:
        raise
    except Exception as error:  # of damaged data the decoders raise OSError, SyntaxError, struct.error, and more
        raise BadImage(path, _reason(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _check_size(image: Image.Image, path: str | Path) -> None:
    tags = _tags(image)
    tile = [
        int(tags.get(TIFF[name], 0)) for name in ("TileWidth", "TileLength")
    ]  # of a small picture it may be of any size
    for width, height in (image.size, tile):
        if width * height > MAX_PIXELS:
            raise BadImage(path, f"{width} x {height} pixels, more than the {MAX_PIXELS} allowed")


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    _scale_transparent_colour(image)
    image.load()
    _turn_upright(image)
    if image.mode.startswith("I") or _is_signed(image):
        return _eight_bits(image, path).convert("RGB")
    if image.mode == "F":
        raise BadImage(path, "its grey values are floating-point numbers, of which black and white are not known")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow knows no way from premultiplied grey to RGBA but by this one
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image)
    return page


def _turn_upright(image: Image.Image) -> None:
    """Turn and mirror, in place, as EXIF says."""
    try:
        image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a picture is no worse for EXIF that cannot be read
        return
    # exif_transpose would write what is left of it anew, and fail where values can be read but not written.
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    ImageOps.exif_transpose(image, in_place=True)


def _scale_transparent_colour(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG from the file's bits to 8, as Pillow does with the pixels but not with it."""
    colour = image.info.get("transparency")
    if not isinstance(image, PngImageFile) or colour is None:
        return
    stored = image.tile[0][3]
    if stored in ("L;2", "L;4"):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[stored]
    if stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Grey of more than 8 bits, or of signed numbers, as 8 bits; transparent pixels are white."""
    values = np.array(image)
    if values.dtype == np.uint8:
        values = values.view(np.int8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise BadImage(path, f"its grey values must be 0 to 65535, got {low} to {high}")
    transparent = values == image.info.get("transparency", -1)
    high = int(values.max(where=~transparent, initial=0))
    bits = next(n for n in GREY_BITS if high < 2**n)
    grey = (values >> (bits - 8)).astype(np.uint8)
    if _tags(image).get(TIFF["PhotometricInterpretation"]) == 0:  # white is 0, which Pillow heeds up to 8 bits only
        grey = 255 - grey
    grey[transparent] = 255
    return Image.fromarray(grey)


def _is_signed(image: Image.Image) -> bool:
    """Pillow takes a TIFF's signed bytes for unsigned ones."""
    return image.mode == "L" and _tags(image).get(TIFF["SampleFormat"]) == (2,)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF, nothing of another file."""
    return image.tag_v2 if isinstance(image, TiffImageFile) else {}


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of the formats {', '.join(FORMATS)} that can be read"
    return f"{type(error).__name__}: {error}"
