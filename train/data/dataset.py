"""What a data set is here, and views of one: subsets, and one that remembers decoded images."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class ImageDataset(Dataset):
    """Map-style data set: `dataset[i]` is an image (3, H, W) uint8 at its native size, and its label.

    An image that cannot be read raises `BadImage`, and only that.

    Attributes:
        classes: names of the classes, a label being an index into them; or of attributes that an image has or has not.
        labels: known without decoding an image: (len(dataset),) int64; or (len(dataset), len(classes)) uint8 of 0 and 1, which
            makes the task multi-label (see train/task/__init__.py).
    """

    classes: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | np.ndarray]:
        raise NotImplementedError

    def label(self, index: int) -> int | np.ndarray:
        """Of one image: a number, or (len(classes),) uint8."""
        label = self.labels[index]
        return label if label.ndim else int(label)


def _strata(labels: np.ndarray) -> np.ndarray:
    """(len,) what is to be balanced: the classes; of attributes nothing, as there may be more combinations than images."""
    return labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """Indices in an order of which every beginning holds equally many of each class, as far as they reach.

    A fixed shuffle, then the first of every class, then the second of every class, and so on. It depends on `labels` alone.
    Of attributes it is the shuffle.
    """
    labels = _strata(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before it in the shuffle
    for label in np.unique(labels):
        mine = labels[order] == label
        turn[mine] = np.arange(mine.sum())
    return order[np.argsort(turn, kind="stable")]


class Subset(ImageDataset):
    """Some images (or videos) of a data set, by their indices."""

    def __init__(self, dataset: ImageDataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.classes, self.labels = dataset.classes, dataset.labels[indices]

    def __getitem__(self, index: int) -> tuple[Tensor, int | np.ndarray]:
        return self.dataset[int(self.indices[index])]


class BalancedSubset(Subset):
    """The first `limit` images of a data set in `balanced_order`: a smaller subset is contained in a larger one."""

    def __init__(self, dataset: ImageDataset, limit: int):
        if limit < 1:
            raise ValueError(f"limit must be a positive number of images or None, got {limit}")
        super().__init__(dataset, balanced_order(dataset.labels)[:limit])


def split_off(dataset: ImageDataset, fraction: float) -> tuple[Subset, Subset]:
    """A data set without, and only, this fraction of each class (rounded), or of all images with attributes; always the same.

    Raises:
        ValueError: one of the two would be without images, or the classes are not known beforehand, as those of a stream.
    """
    if dataset.labels.min() < 0:
        raise ValueError("a stream cannot be divided: name a split of its own as test_split")
    labels = _strata(dataset.labels)
    order = balanced_order(labels)
    number = np.empty(len(order), dtype=np.int64)  # among its class, in that order
    for label in np.unique(labels):
        mine = labels[order] == label
        number[mine] = np.arange(mine.sum())
    counts = np.bincount(labels, minlength=1)[labels[order]]
    aside = number < np.round(fraction * counts)
    if aside.all() or not aside.any():
        raise ValueError(f"a fraction of {fraction:g} of {len(order)} images leaves {aside.sum()} and {(~aside).sum()}")
    return Subset(dataset, np.sort(order[~aside])), Subset(dataset, np.sort(order[aside]))


class Cached(ImageDataset):
    """Keeps every decoded image, if all together, at the size of the first one read, fit into `max_bytes`.

    Images of another size are decoded each time. The memory belongs to one process: each worker of a loader fills its own and
    loses it with the loader.
    """

    def __init__(self, dataset: ImageDataset, max_bytes: int = 2**28):
        self.dataset, self.max_bytes = dataset, max_bytes
        self.classes, self.labels = dataset.classes, dataset.labels
        self.images: Tensor | None = None  # (len, H, W, 3) uint8
        self.kept = np.zeros(len(dataset), dtype=bool)

    def __getitem__(self, index: int) -> tuple[Tensor, int | np.ndarray]:
        if self.images is not None and self.kept[index]:
            return self.images[index].permute(2, 0, 1), self.label(index)
        image, label = self.dataset[index]
        if self.images is None:
            fits = len(self) * image.numel() <= self.max_bytes
            _, height, width = image.shape
            self.images = image.new_empty((len(self) if fits else 0, height, width, 3))
        pixels = image.permute(1, 2, 0)
        if len(self.images) and pixels.shape == self.images.shape[1:]:
            self.images[index] = pixels
            self.kept[index] = True
        return image, label

    def __getstate__(self) -> dict:
        """Without the images: a worker started by spawn decodes its own."""
        return self.__dict__ | {"images": None, "kept": np.zeros(len(self), dtype=bool)}
