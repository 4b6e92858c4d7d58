"""decode against what a viewer shows of good files of every kind, and against files that are damaged, hostile or no images.

The reference is arithmetic on the pixels that were written: turned, composited on white, or brought from n bits to 8.
"""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from s4nd.train.data import BadImage
from s4nd.train.data.images import MAX_PIXELS, decode, read_image

LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}


def shown(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    return decode(data, "x").permute(1, 2, 0).numpy()


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 -> (H, W, 3) uint8, rounded to the nearest."""
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float) / 255
    return np.floor(alpha * colour + (1 - alpha) * 255 + 0.5).astype(np.uint8)


def png(rows: list[bytes], width: int, depth: int, colour: int, *, height: int | None = None, **chunks: bytes) -> bytes:
    """A PNG of any bit depth and colour type; Pillow writes few of them."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height or len(rows), depth, colour, 0, 0, 0))
    others = b"".join(chunk(kind.encode(), body) for kind, body in chunks.items())
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + others + pixels + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, **tags: int) -> bytes:
    """A TIFF of grey pixels (H, W) in their own byte order; tags by number, as _274=6, are 32-bit numbers."""
    end = ">" if pixels.dtype.str[0] == ">" else "<"
    height, width = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    fields = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    fields |= {279: pixels.nbytes, 339: kind} | {int(name[1:]): value for name, value in tags.items()}
    body = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    entries = b"".join(struct.pack(f"{end}HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    start = {"<": b"II", ">": b"MM"}[end] + struct.pack(f"{end}HI", 42, 8 + len(body))
    return start + body + struct.pack(f"{end}H", len(fields)) + entries + bytes(4)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_every_mode_becomes_rgb(picture, mode, encode):
    image = picture(5, 7).convert(mode)
    pixels = decode(encode(image), "x.png")
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 5, 7)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_lossless_formats_hold_the_pixels_that_were_written(picture, encode, format):
    image = picture(5, 7).quantize(16) if format == "GIF" else picture(5, 7)
    assert np.array_equal(shown(encode(image, format, **LOSSLESS.get(format, {}))), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode, format", [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("YCbCr", "JPEG")])
def test_jpeg_of_every_mode_becomes_rgb(mode, format, encode):
    """An even colour, which JPEG keeps up to the rounding of its colour space and of CMYK's."""
    image = Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode)
    error = shown(encode(image, format, quality=100)).astype(int) - np.array(image.convert("RGB"))
    assert abs(error).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_tiff_of_every_mode_becomes_rgb(picture, encode, mode):
    image = picture(5, 7)
    if mode == "LAB":
        ends = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *ends, outputMode="LAB")
        back = ImageCms.profileToProfile(image, *ends[::-1], outputMode="RGB")
    else:
        image = image.convert(mode)
        back = image.convert("RGB")
    assert np.array_equal(shown(encode(image, "TIFF")), np.array(back))


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_of_several_frames_is_the_picture(encode, format):
    first, second = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue")
    data = encode(first, format, save_all=True, append_images=[second], **LOSSLESS.get(format, {}))
    assert (shown(data) == [255, 0, 0]).all()


# What was done to the upright picture (H, W, 3) before it was stored, by EXIF's number for undoing it.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_gives_the_upright_picture(encode, format, orientation):
    """Of blocks of one colour, which JPEG keeps wherever they lie: 2 wide and 3 high."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    upright = colours.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | LOSSLESS.get(format, {"subsampling": 0})
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))), format, **options)
    plain = encode(Image.fromarray(upright), format, **{**options, "exif": Image.Exif()})
    assert np.array_equal(shown(data), shown(plain)) and shown(data).shape == (48, 32, 3)


def test_orientation_reaches_16_bit_grey_and_transparency(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint16) << 8)
    assert shown(encode(deep, exif=exif))[..., 0].tolist() == [[48, 16], [64, 32]]
    key = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    assert shown(encode(key, exif=exif, transparency=3))[..., 0].tolist() == [[255, 1], [4, 2]]


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_orientation_that_means_nothing_turns_nothing(picture, encode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(shown(encode(picture(5, 7), exif=exif)), np.array(picture(5, 7)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"garbage",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*",
    ],
)
def test_picture_with_unreadable_exif_is_read_as_it_is_stored(picture, encode, format, exif):
    options = LOSSLESS.get(format, {})
    plain = shown(encode(picture(5, 7), format, **options))
    assert np.array_equal(shown(encode(picture(5, 7), format, exif=exif, **options)), plain)


def test_exif_that_can_be_read_but_not_written_turns_the_picture(picture, encode):
    """The orientation, and an XResolution of 1/0 with a type that no writer has."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x011A, 2, 1, 0xFFFFFFFF)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    assert np.array_equal(shown(encode(picture(5, 7), exif=exif)), np.rot90(np.array(picture(5, 7)), -1))


def test_tiff_with_an_unreadable_exif_directory_is_read():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for place in (9, 1_000_000):
        assert np.array_equal(shown(tiff(grey, _34665=place, _34853=place))[..., 0], grey)


RGBA = np.random.default_rng(1).integers(0, 256, (6, 5, 4), dtype=np.uint8)
RGBA[0, :, 3], RGBA[1, :, 3] = 0, 255


@pytest.mark.parametrize("format", LOSSLESS)
def test_alpha_channel_is_composited_on_white(encode, format):
    data = encode(Image.fromarray(RGBA), format, **LOSSLESS[format])
    assert np.array_equal(shown(data), on_white(RGBA)) and (shown(data)[0] == 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_with_alpha_looks_like_the_same_colour_with_alpha(encode, format):
    grey = RGBA[..., [0, 0, 0, 3]]
    assert np.array_equal(shown(encode(Image.fromarray(RGBA[..., [0, 3]], "LA"), format)), on_white(grey))


def test_premultiplied_colour_looks_like_what_it_was_made_from(monkeypatch):
    """No file has these modes in every version of Pillow: the image stands for one. Rounded twice, so up to 1 apart."""
    for mode, pixels in (("RGBa", RGBA), ("La", RGBA[..., [0, 0, 0, 3]])):
        image = Image.fromarray(pixels)
        image = image.convert("RGBa") if mode == "RGBa" else image.convert("LA").convert("La")
        image.format = None
        monkeypatch.setattr(Image, "open", lambda *_, image=image, **__: image.copy())
        error = shown(b"").astype(int) - on_white(pixels)
        assert image.mode == mode and abs(error).max() <= 1 and (shown(b"")[0] == 255).all()


def test_palette_with_alpha_channel_looks_like_its_colours_with_alpha(encode):
    palette = Image.fromarray(RGBA[..., :3]).quantize(8)
    image = Image.merge("PA", (palette, Image.fromarray(RGBA[..., 3])))
    expected = np.dstack([np.array(palette.convert("RGB")), RGBA[..., 3]])
    assert np.array_equal(shown(encode(image, "TIFF")), on_white(expected))


@pytest.mark.parametrize(
    "format, transparency",
    [
        ("GIF", 2),
        ("PNG", 2),
        ("PNG", bytes([0, 128, 255])),
        ("PNG", bytes([255, 0])),
        ("PNG", bytes(range(0, 256, 32))),
    ],
)
def test_palette_with_transparency_looks_like_its_colours_with_alpha(encode, format, transparency):
    image = Image.fromarray(RGBA[..., :3]).quantize(8)
    alpha = np.full(256, 255, dtype=np.uint8)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    else:
        alpha[: len(transparency)] = list(transparency)
    expected = np.dstack([np.array(image.convert("RGB")), alpha[np.array(image)]])
    assert np.array_equal(shown(encode(image, format, transparency=transparency)), on_white(expected))


@pytest.mark.parametrize("depth, unit", [(1, 255), (2, 85), (4, 17), (8, 1)])
@pytest.mark.parametrize("key", [0, 1])
def test_transparent_grey_is_white_at_every_bit_depth(depth, unit, key):
    count = 8 // depth
    values = [i % 2**depth for i in range(count)]
    row = bytes([sum(value << (8 - depth * (i + 1)) for i, value in enumerate(values))])
    expected = [255 if value == key else value * unit for value in values]
    assert shown(png([row], count, depth, 0, tRNS=struct.pack(">H", key)))[0, :, 0].tolist() == expected


def test_transparent_colour_is_white_in_8_and_16_bits():
    colours = np.array([[10, 20, 30], [10, 20, 31]])
    for depth, kind, factor in ((8, "B", 1), (16, "H", 256)):
        row = struct.pack(f">6{kind}", *(colours * factor).ravel())
        data = png([row], 2, depth, 2, tRNS=struct.pack(">3H", *(colours[0] * factor)))
        assert shown(data)[0].tolist() == [[255, 255, 255], [10, 20, 31]]


def test_transparent_16_bit_grey_is_white_and_does_not_set_the_range():
    row = struct.pack(">4H", 0, 2048, 4095, 65535)
    assert shown(png([row], 4, 16, 0, tRNS=struct.pack(">H", 65535)))[0, :, 0].tolist() == [0, 128, 255, 255]
    assert shown(png([row], 4, 16, 0, tRNS=struct.pack(">H", 0)))[0, :, 0].tolist() == [255, 8, 15, 255]


def test_webp_and_png_that_look_the_same_are_the_same(encode):
    image = Image.fromarray(RGBA)
    assert np.array_equal(shown(encode(image)), shown(encode(image, "WEBP", lossless=True, exact=False)))


GRADIENT = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("scaled", ["shifted", "stretched"])
def test_gradient_of_n_bits_is_the_8_bit_gradient(encode, bits, scaled):
    wide = GRADIENT << (bits - 8) if scaled == "shifted" else np.round(GRADIENT * (2**bits - 1) / 255).astype(int)
    for data in (encode(Image.fromarray(wide.astype(np.uint16))), tiff(wide.astype("<u2")), tiff(wide.astype(">u2"))):
        assert np.array_equal(shown(data), np.dstack([GRADIENT] * 3))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L", "I;16N"])
def test_deep_grey_is_read_in_every_mode_of_pillow(monkeypatch, mode):
    values = np.array([[0, 100, 4095]], dtype={"I": "=i4", "I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2"))
    image = Image.frombytes(mode, (3, 1), values.tobytes())
    image.format = None
    monkeypatch.setattr(Image, "open", lambda *_, **__: image)
    assert shown(b"")[0, :, 0].tolist() == [0, 6, 255]


def test_16_bits_are_scaled_and_not_clipped(encode):
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    assert shown(encode(image))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("kind", ["<u2", "<i2", ">i2", "<u4", "<i4", ">i4"])
def test_grey_numbers_of_other_types_count_by_their_values(kind):
    assert shown(tiff(np.array([[0, 100, 4095]], dtype=kind)))[0, :, 0].tolist() == [0, 6, 255]


def test_white_is_zero_is_heeded_in_16_bits_as_in_8():
    for kind, top in (("<u1", 255), ("<u2", 65535)):
        assert shown(tiff(np.array([[0, top]], dtype=kind), _262=0))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    "values, message",
    [
        (np.array([[-1, 5]], dtype="<i2"), "must be 0 to 65535, got -1 to 5"),
        (np.array([[-1, 5]], dtype="<i1"), "must be 0 to 65535, got -1 to 5"),
        (np.array([[0, 65536]], dtype="<i4"), "must be 0 to 65535, got 0 to 65536"),
        (np.array([[0, 0.5]], dtype="<f4"), "floating-point numbers"),
    ],
)
def test_grey_values_without_a_known_range_are_refused(values, message):
    with pytest.raises(BadImage, match=message):
        decode(tiff(values), "x.tif")


def test_tile_larger_than_the_picture_is_bounded_too():
    """A compressed tile is decoded as a whole, and takes its size from the file."""
    with pytest.raises(BadImage, match=r"60000 x 50000 pixels, more than"):
        decode(tiff(np.zeros((2, 3), dtype=np.uint8), _322=60_000, _323=50_000), "x.tif")


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
    with pytest.raises(BadImage, match="not an image of the formats JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        decode(encode(picture(4, 4), "EPS"), "x.jpg")


@pytest.mark.parametrize(
    "side", [9_000, 12_000, 60_000], ids=["below Pillow's limits", "warned of", "refused by Pillow"]
)
def test_decompression_bomb_is_refused_from_its_header(side):
    """A PNG of a few hundred bytes that claims side x side pixels."""
    assert side * side > MAX_PIXELS
    bomb = png([bytes(1000)], side, 8, 2, height=side)
    with pytest.raises(BadImage, match="pixels"):
        decode(bomb, "bomb.png")


def test_missing_file_raises_bad_image(tmp_path):
    with pytest.raises(BadImage, match=r"gone\.jpg: FileNotFoundError"):
        read_image(tmp_path / "gone.jpg")


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("a.jpg", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "broken", "a.jpg: broken")
