"""Image folders, ROOT/train/CLASS/* and ROOT/val/CLASS/* (or test/): ImageNet's layout and everybody's own pictures."""

import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from s4nd.models.names import listed

from .dataset import ImageDataset
from .images import read_image

FOLDERS = {"train": ("train",), "test": ("val", "test")}
# What macOS, network storage, Windows, file systems and Python leave in folders; in lower case.
JUNK = {"__macosx", "@eadir", "@recycle", "#recycle", "lost+found", "__pycache__", "thumbs.db", "ehthumbs.db"}
JUNK |= {"desktop.ini", "$recycle.bin", "recycler", "system volume information"}

logger = logging.getLogger("s4nd")


class Folder(ImageDataset):
    """One split of a tree of images; the classes are the names of the folders, in alphabetical order.

    A class may have folders within. What is hidden (`is_hidden`) is no data wherever it stands, and a file that links make
    appear twice in a class counts once. Files of other extensions are left out, with a warning that counts them.

    Raises:
        FileNotFoundError: there is no such tree, or a class without an image.
        ValueError: the classes for testing are not those for training, or one file is in two classes.
    """

    kind = "image"
    # in upper case too
    extensions: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

    def __init__(self, root: str | Path, split: str):
        folder = _find_split(Path(root), split, self.kind, self.extensions)
        self.classes = _class_folders(folder)
        if not self.classes:
            raise FileNotFoundError(f"{folder} must hold a folder for each class of {split}, it holds none")
        train = Path(root) / "train"
        if split == "test" and train.is_dir():
            odd = sorted({*_class_folders(train)}.symmetric_difference(self.classes))
            if odd:
                raise ValueError(f"{folder} must hold the classes of {train}; only one of them has {listed(odd)}")
        paths, labels, owners = [], [], {}
        beside = [path.name.lower() for path in folder.iterdir() if path.is_file() and not is_hidden(path.name)]
        stray = sum(name.endswith(self.extensions) for name in beside)
        left_out = Counter({"in no class folder": stray} if stray else {})
        for label, name in enumerate(self.classes):
            others: Counter[str] = Counter()
            for path, identity in _files_below(str(folder / name)):
                if not path.lower().endswith(self.extensions):
                    others[os.path.splitext(path)[1].lower() or "without extension"] += 1
                elif identity not in owners:
                    owners[identity] = label, path
                    paths.append(path)
                    labels.append(label)
                elif owners[identity][0] != label:
                    raise ValueError(f"one file is in two classes: {owners[identity][1]} is {path}")
            if not labels or labels[-1] != label:
                there = f"; there are {_counted(others)}" if others else ""
                needed = f"needs at least one {self.kind} ({', '.join(self.extensions)})"
                raise FileNotFoundError(f"class {name} of {split} {needed} in {folder / name}{there}")
            left_out += others
        if left_out:
            count, needed = left_out.total(), ", ".join(self.extensions)
            logger.warning(
                "%s: left out %d files that are not CLASS/* of %s: %s", folder, count, needed, _counted(left_out)
            )
        self.paths = np.array(paths)  # one array: forked workers do not copy it
        self.labels = np.array(labels, dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(str(self.paths[index])), int(self.labels[index])


def _find_split(root: Path, split: str, kind: str, extensions: tuple[str, ...]) -> Path:
    """The folder of a split.

    Raises:
        FileNotFoundError: it is absent; says what was needed and what is there.
    """
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    there = sorted(path.name for path in root.iterdir() if not is_hidden(path.name)) if root.is_dir() else None
    found = "no such folder" if there is None else listed(there, 8) or "nothing"
    needed = " or ".join(f"{root / name}/CLASS/*{extensions[0]}" for name in FOLDERS[split])
    raise FileNotFoundError(
        f"{kind} folders for {split} must be {needed} ({', '.join(extensions)}); in {root}: {found}"
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is no data: it begins with a dot, or systems put it there."""
    return name.startswith(".") or name.lower() in JUNK


def _class_folders(folder: Path) -> list[str]:
    """The names of the classes of a split, in alphabetical order."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _files_below(folder: str) -> Iterator[tuple[str, Hashable]]:
    """Path and identity of every file in a folder and the folders within, in alphabetical order.

    Links are followed, and may lead back: each real folder is entered once. Of a file with several names each is told.
    """
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(here) as found:
            entries = sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)
        folders = [entry.path for entry in entries if _is_folder(entry)]
        inside = {*folders}
        yield from ((entry.path, _identity(entry, status.st_dev)) for entry in entries if entry.path not in inside)
        waiting += reversed(folders)


# Only links are looked up: a million files on a network drive would take minutes.
def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(entry: os.DirEntry, device: int) -> Hashable:
    """The same for all names of a file."""
    if not entry.is_symlink():
        return device, entry.inode()
    try:
        status = entry.stat()
    except OSError:  # a link to nothing: reading it will say so
        return entry.path
    return status.st_dev, status.st_ino


def _counted(extensions: Counter) -> str:
    return ", ".join(f"{count} {name}" for name, count in extensions.most_common())
