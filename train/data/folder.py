"""Image folders, ROOT/train/CLASS/* and ROOT/val/CLASS/* (or test/): ImageNet's layout and everybody's own pictures."""

from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision.datasets import DatasetFolder

from .dataset import ImageDataset
from .images import read_image

FOLDERS = {"train": ("train",), "test": ("val", "test")}


class Folder(ImageDataset):
    """One split of a tree of images; the classes are the names of the folders, in alphabetical order.

    Raises:
        FileNotFoundError: there is no such tree, or a class without an image.
        ValueError: the classes for testing are not those for training.
    """

    kind = "image"
    extensions: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp")  # in upper case too

    def __init__(self, root: str | Path, split: str):
        folder = find_split(Path(root), split, self.kind, self.extensions)
        files = DatasetFolder(str(folder), read_image, extensions=self.extensions)
        self.classes = files.classes
        self.paths = np.array([path for path, _ in files.samples])  # one array: forked workers do not copy it
        self.labels = np.array(files.targets, dtype=np.int64)
        train = Path(root) / "train"
        if split == "test" and train.is_dir():
            trained = {path.name for path in train.iterdir() if path.is_dir()}
            odd = sorted(trained.symmetric_difference(self.classes))
            if odd:
                raise ValueError(f"{folder} must hold the classes of {train}; only one of them has {', '.join(odd)}")

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(str(self.paths[index])), int(self.labels[index])


def find_split(root: Path, split: str, kind: str, extensions: tuple[str, ...]) -> Path:
    """The folder of a split.

    Raises:
        FileNotFoundError: it is absent; says what was needed and what is there.
    """
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else "no such folder"
    needed = " or ".join(f"{root / name}/CLASS/*{extensions[0]}" for name in FOLDERS[split])
    raise FileNotFoundError(
        f"{kind} folders for {split} must be {needed} ({', '.join(extensions)}); in {root}: {found or 'nothing'}"
    )
