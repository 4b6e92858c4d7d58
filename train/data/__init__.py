"""Data sets of images at their native size and of video files, and loaders that render them at any other size.

build_dataset       a data set by name: photos (embedded), cifar10, cifar100, parquet, folder, csv, celeba; wds/NAME, hfds/NAME,
                    hfids/NAME; video, hmdb51, ucf101
split_off           a validation split of the training images
make_loader         batches of one epoch after the other at one size; uint8, normalised later on the device
Rendering           what becomes of images or clips on the way
Resized, Augmented  the views of images behind it: rendering, flips and shifts; timm's random transforms
Noisy               the same with noise, and the residual that restores them
ImageTransforms     which of timm's transforms, and how images are rendered
Clips               the view of videos behind it
Reading             what to read of data sets of timm's readers
ClipSampling        how clips are taken from a video
MOTION              views of a clip that show only what moves
ImageDataset        what a data set of images is; Photos, Cifar, Parquet, Folder, CsvList, Celeba, Shards, HuggingFace,
                    HuggingFaceStream, and Cached and BalancedSubset of one
VideoDataset        what a data set of videos is; VideoFolder, HMDB51, UCF101
BadImage, BadVideo  raised for an image or a video that cannot be read
"""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .attributes import CsvList
from .augmented import Augmented
from .celeba import Celeba
from .cifar import Cifar
from .clips import Clips, ClipSampling
from .dataset import BalancedSubset, Cached, ImageDataset, split_off
from .film import require_av as _require_av
from .folder import Folder
from .hugging_face import HuggingFace, HuggingFaceStream
from .image_transforms import ImageTransforms
from .images import BadImage
from .loader import ImageLoader, make_loader
from .motion import MOTION
from .noisy import Noisy
from .parquet import Parquet
from .photos import Photos
from .readers import READERS, STREAMS, Reading, reader_of
from .resized import Resized
from .shards import Shards
from .video import BadVideo
from .video_sets import HMDB51, UCF101, VideoDataset, VideoFolder
from .views import Rendering

__all__ = [
    "DATASETS",
    "HMDB51",
    "LISTED_DATASETS",
    "MOTION",
    "READERS",
    "STREAMS",
    "UCF101",
    "VIDEO_DATASETS",
    "Augmented",
    "BadImage",
    "BadVideo",
    "BalancedSubset",
    "Cached",
    "Celeba",
    "Cifar",
    "ClipSampling",
    "Clips",
    "CsvList",
    "Folder",
    "HuggingFace",
    "HuggingFaceStream",
    "ImageDataset",
    "ImageLoader",
    "ImageTransforms",
    "Noisy",
    "Parquet",
    "Photos",
    "Reading",
    "Rendering",
    "Resized",
    "Shards",
    "VideoDataset",
    "VideoFolder",
    "build_dataset",
    "make_loader",
    "reader_of",
    "split_off",
]

# A root is Any: `build_dataset` sees to it that there is one where it is needed.
DATASETS: dict[str, Callable[[Any, str], ImageDataset | VideoDataset]] = {
    "photos": lambda root, split: Photos(split),
    "cifar10": lambda root, split: Cifar("cifar10", root, split),
    "cifar100": lambda root, split: Cifar("cifar100", root, split),
    "parquet": Parquet,
    "folder": Folder,
    "csv": CsvList,
    "celeba": Celeba,
    "video": VideoFolder,
}
LISTED_DATASETS: dict[str, Callable[[Any, str, str | Path, int], VideoDataset]] = {
    "hmdb51": HMDB51,
    "ucf101": UCF101,
}
_OPENED: dict[str, Callable[[str, Any, str, Reading], ImageDataset]] = {
    "wds": lambda name, root, split, reading: Shards(root, split, reading),
    "hfds": HuggingFace,
    "hfids": HuggingFaceStream,
}
VIDEO_DATASETS = ("video", *LISTED_DATASETS)
_SPLITS = ("train", "test")


def build_dataset(
    name: str,
    root: str | Path | None,
    split: str,
    limit: int | None = None,
    lists: str | Path | None = None,
    official_split: int = 1,
    reading: Reading | None = None,
) -> ImageDataset | VideoDataset:
    """A data set by its name.

    Args:
        name: a key of DATASETS or LISTED_DATASETS, or READER/NAME.
        root: folder of the data; None for "photos", which come with scikit-image. Of hfds and hfids, which may do without,
            where downloads are kept.
        split: "train" or "test".
        limit: only so many images or videos: the first ones of a fixed shuffle that takes the classes in turn.
        lists, official_split: folder of the official split files, and which of the splits; for LISTED_DATASETS.
        reading: for READERS.

    Raises:
        KeyError: unknown name.
        ValueError: unknown split, no root or a needless one, no lists or needless ones, a limit of a stream, or data of another
            layout.
        FileNotFoundError: the data is not there.
        ImportError: a package that the data needs is not installed.
    """
    known, reader = [*DATASETS, *LISTED_DATASETS], reader_of(name)
    if name not in known and not reader:
        near = get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"known: {', '.join([*known, *(f'{each}/NAME' for each in READERS)])}"
        )
        raise KeyError(f"data set {name!r} is unknown; {hint}")
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    if (root is None) != (name == "photos") and reader not in ("hfds", "hfids"):
        needed = "takes no root" if name == "photos" else "needs the folder of the data as root"
        raise ValueError(f"data set {name} {needed}, got {root}")
    if (lists is None) != (name not in LISTED_DATASETS):
        needed = "needs the folder of its official split files as" if name in LISTED_DATASETS else "takes no"
        raise ValueError(f"data set {name} {needed} lists, got {lists}")
    if name in VIDEO_DATASETS:
        _require_av()  # before anything else takes time
    if reader in STREAMS and limit is not None:
        raise ValueError(
            f"{name} is read as a stream, of which a limit would take the first images, got {limit}; None takes all"
        )
    dataset: Any
    if reader:
        dataset = _OPENED[reader](name.partition("/")[2], root, split, reading or Reading())
    elif lists is None:
        dataset = DATASETS[name](root, split)
    else:
        dataset = LISTED_DATASETS[name](root, split, lists, official_split)
    if limit is not None:
        dataset = BalancedSubset(dataset, limit)
    return Cached(dataset) if name in ("parquet", "folder", "csv", "celeba") or reader == "hfds" else dataset
