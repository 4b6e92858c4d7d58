"""decode against Pillow on good files of every mode, and against files that are damaged, hostile or no images."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from s4nd.train.data import BadImage
from s4nd.train.data.images import MAX_PIXELS, decode, read_image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_every_mode_becomes_rgb(picture, mode, encode):
    image = picture(5, 7).convert(mode)
    pixels = decode(encode(image), "x.png")
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 5, 7)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode, format", [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("RGBA", "WEBP")])
def test_other_formats_become_rgb(picture, mode, format, encode):
    assert decode(encode(picture(5, 7).convert(mode), format), "x").shape == (3, 5, 7)


def test_transparent_palette_keeps_its_colours(picture, encode):
    image = picture(5, 7).convert("P")
    pixels = decode(encode(image, transparency=bytes([0, 128, 255])), "x.png")
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_16_bit_grey_is_scaled_and_not_clipped(picture, encode):
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    assert decode(encode(image), "x.png")[0].tolist() == [[0, 0, 1, 255]]


def test_truncated_jpeg_raises_bad_image_with_path(picture, encode):
    data = encode(picture(64, 64), "JPEG")
    with pytest.raises(BadImage, match=r"photos/7\.jpg: .*truncated"):
        decode(data[: len(data) // 2], "photos/7.jpg")


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0junk", b"GIF89a"]
)
def test_what_is_no_image_raises_bad_image(data):
    with pytest.raises(BadImage, match=r"x\.jpg: "):
        decode(data, "x.jpg")


def test_formats_that_run_programs_are_refused(picture, encode):
    with pytest.raises(BadImage, match="not an image of the formats JPEG, PNG, WEBP"):
        decode(encode(picture(4, 4), "EPS"), "x.jpg")


@pytest.mark.parametrize(
    "side", [9_000, 12_000, 60_000], ids=["below Pillow's limits", "warned of", "refused by Pillow"]
)
def test_decompression_bomb_is_refused_from_its_header(side):
    """A PNG of a few hundred bytes that claims side x side pixels."""
    assert side * side > MAX_PIXELS

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="pixels"):
        decode(bomb, "bomb.png")


def test_missing_file_raises_bad_image(tmp_path):
    with pytest.raises(BadImage, match=r"gone\.jpg: FileNotFoundError"):
        read_image(tmp_path / "gone.jpg")


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "broken", "a.jpg: broken")
