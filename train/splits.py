"""The images or videos of a run: those it trains on, and those that judge it."""

from typing import Any, NamedTuple

from torch import distributed as dist

from .config import DataConfig
from .data import build_dataset, split_off
from .data.dataset import ImageDataset
from .data.names import difference
from .data.video_sets import VideoDataset
from .processes import Place


class Splits(NamedTuple):
    """Of the same classes.

    Attributes:
        train: to train on.
        judges: to choose best.safetensors by: a validation split of the training images, or the test split.
        judge: the name of that, "validation" or "test".
    """

    train: ImageDataset | VideoDataset
    judges: ImageDataset | VideoDataset
    judge: str

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the labels; of a multi-label task the attributes."""
        return list(self.train.classes)


def open_splits(data: DataConfig, place: Place) -> Splits:
    """What the config names; the first process alone downloads what is to be downloaded.

    Raises:
        ValueError, FileNotFoundError: there is no such data, its splits are of different classes, or it cannot be divided.
    """
    if place.rank > 0:
        dist.barrier()
    source: dict[str, Any] = {"lists": data.lists, "official_split": data.split, "reading": data.reading()}
    train_set: Any = build_dataset(data.name, data.root, "train", limit=data.train_limit, **source)
    if data.val_fraction is None:
        judges = build_dataset(data.name, data.root, "test", limit=data.test_limit, **source)
        splits = Splits(train_set, judges, "test")
    else:
        try:
            splits = Splits(*split_off(train_set, data.val_fraction), "validation")
        except ValueError as error:
            raise ValueError(f"data.val_fraction={data.val_fraction:g}: {error}") from None
    if place.rank == 0 and place.world_size > 1:
        dist.barrier()
    odd = difference(splits.classes, splits.judges.classes, "the training data", "the test data")
    if odd:
        raise ValueError(f"training and test data must have the same classes: {odd}")
    return splits
