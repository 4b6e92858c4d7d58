"""Data sets of images at their native size, and loaders that render them at any other.

build_dataset       a data set by name: photos (embedded), cifar10, cifar100, parquet, folder
make_loader         batches of one epoch at one size; uint8, normalised later on the device
Resized             the view behind it: rendering, flips and shifts
ImageDataset        what a data set is
BadImage            raised for an image that cannot be read
"""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from .cifar import Cifar
from .dataset import BalancedPart, Cached, ImageDataset
from .folder import Folder
from .images import BadImage
from .loader import ImageLoader, make_loader
from .parquet import Parquet
from .photos import Photos
from .resized import Resized

__all__ = ["DATASETS", "BadImage", "ImageDataset", "ImageLoader", "Resized", "build_dataset", "make_loader"]

DATASETS: dict[str, Callable[[str | Path, str], ImageDataset]] = {
    "photos": lambda root, split: Photos(split),
    "cifar10": lambda root, split: Cifar("cifar10", root, split),
    "cifar100": lambda root, split: Cifar("cifar100", root, split),
    "parquet": Parquet,
    "folder": Folder,
}
SPLITS = ("train", "test")


def build_dataset(name: str, root: str | Path | None, split: str, limit: int | None = None) -> ImageDataset:
    """A data set by its name.

    Args:
        name: a key of DATASETS.
        root: folder of the data; None for "photos", which come with scikit-image.
        split: "train" or "test".
        limit: only so many images: the first ones of a fixed shuffle that takes the classes in turn.

    Raises:
        KeyError: unknown name.
        ValueError: unknown split, no root or a needless one, or data of another layout.
        FileNotFoundError: the data is not there.
        ImportError: a package that the data needs is not installed.
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(DATASETS)}"
        raise KeyError(f"data set {name!r} is unknown; {hint}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if (root is None) != (name == "photos"):
        needed = "takes no root" if name == "photos" else "needs the folder of the data as root"
        raise ValueError(f"data set {name} {needed}, got {root}")
    dataset = DATASETS[name](root, split)
    if limit is not None:
        dataset = BalancedPart(dataset, limit)
    return Cached(dataset) if name in ("parquet", "folder") else dataset
