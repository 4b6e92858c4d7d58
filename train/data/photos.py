"""The embedded data set: crops of real photographs that ship inside the scikit-image wheel. Nothing is downloaded.

A class is a photograph, and the task is to tell from which one a crop was cut. Each picture is divided into cells, some of
them for testing: a test crop lies wholly inside the test cells, a training crop wholly outside, so they share no pixel.
All is made grey, since the colour alone would give most classes away, and texture and form, which are what a change
of resolution puts to the test, would not matter. Crops are of native pixels, at least 96 x 96, so that a finer rendering,
up to there, holds more detail.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from .dataset import ImageDataset
from .images import read_image

PHOTOS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "handwriting": "text.png",
    "hubble": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
CROPS = {"train": 200, "test": 50}
MIN_CELL = 128  # pixels; a crop is 3/4 of the side of a cell
LUMA = (299, 587, 114)  # thousandths of red, green and blue
GOLDEN_RATIO = (5**0.5 - 1) / 2


def photo_folder() -> Path:
    """Where scikit-image keeps its pictures.

    Raises:
        ImportError: scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError('the data set "photos" is made of the photographs in scikit-image: pip install "s4nd[demo]"')
    return Path(spec.origin).parent / "data"


def _cells(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells of a picture: at most 4, of at least MIN_CELL pixels if the picture has them."""
    return min(4, max(1, height // MIN_CELL)), min(4, max(1, width // MIN_CELL))


def kept_for_testing(height: int, width: int) -> np.ndarray:
    """(height, width) bool, true for the pixels kept for testing: between a sixth and a third of them, spread out."""
    rows, columns = _cells(height, width)
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    return (row[:, None] + 2 * column) % 4 == 2


def crop_corners(region: np.ndarray, side: int, count: int) -> np.ndarray:
    """Top left corners (count, 2) of distinct squares inside `region` (H, W) bool, spread evenly over the possible ones.

    Steps of the golden ratio instead of random numbers: even for every count, and the same on every machine.

    Raises:
        ValueError: there is no room for so many.
    """
    area = np.zeros((region.shape[0] + 1, region.shape[1] + 1), dtype=np.int64)  # summed-area table
    area[1:, 1:] = region.cumsum(0).cumsum(1)
    inside = area[side:, side:] - area[:-side, side:] - area[side:, :-side] + area[:-side, :-side]
    corners = np.argwhere(inside == side * side)
    if count > len(corners) // 4:  # golden steps are apart by more than 1 / (4 count), so up to here none meet
        raise ValueError(f"a picture has room for at most {len(corners) // 4} crops of {side} pixels, got {count}")
    return corners[(len(corners) * (GOLDEN_RATIO * np.arange(count) % 1)).astype(np.int64)]


class Photos(ImageDataset):
    """Grey crops of 14 photographs, replicated to RGB; crop `i` of class `c` is item `c * crops + i`.

    Args:
        split: "train" or "test"; they share no pixel.
        crops: crops of each picture, by default 200 for training and 50 for testing.

    Raises:
        ImportError: scikit-image is not installed.
        FileNotFoundError: it is, without one of the pictures.
    """

    def __init__(self, split: str, crops: int | None = None):
        crops = CROPS[split] if crops is None else crops
        folder = photo_folder()
        self.classes = list(PHOTOS)
        self.labels = np.repeat(np.arange(len(PHOTOS)), crops)
        self.pictures, self.corners, self.sides = [], [], []
        for file in PHOTOS.values():
            if not (folder / file).is_file():
                raise FileNotFoundError(f'the data set "photos" needs {file} of scikit-image, which is not in {folder}')
            picture = to_grey(read_image(folder / file))
            region = kept_for_testing(*picture.shape)
            rows, columns = _cells(*picture.shape)
            side = min(picture.shape[0] // rows, picture.shape[1] // columns) * 3 // 4
            self.pictures.append(picture[..., None].repeat(1, 1, 3).permute(2, 0, 1))  # (3, H, W)
            self.corners.append(crop_corners(region if split == "test" else ~region, side, crops))
            self.sides.append(side)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])
        y, x = self.corners[label][index % len(self.corners[label])].tolist()
        side = self.sides[label]
        return self.pictures[label][:, y : y + side, x : x + side], label


def to_grey(image: Tensor, dim: int = 0) -> Tensor:
    """Luma of uint8 colours along `dim`, which it loses, in whole numbers so that every machine rounds alike; ITU-R BT.601."""
    red, green, blue = (channel.int() for channel in image.unbind(dim))
    return ((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 500) // 1000).to(image.dtype)
