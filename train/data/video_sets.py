"""Data sets of videos: class folders, HMDB-51 and UCF-101 with their official split files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from s4nd.models.names import listed

from .folder import Folder

HMDB51_TAGS = {"train": "1", "test": "2"}  # 0: not used in that split


class VideoDataset(Dataset):
    """Map-style data set: `dataset[i]` is the path of a video, which nobody has opened yet, and its label.

    Attributes:
        classes: names of the classes; a label is an index into them.
        paths: (len(dataset),) of str.
        labels: (len(dataset),) int64.
    """

    classes: list[str]
    paths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return str(self.paths[index]), int(self.labels[index])


class VideoFolder(VideoDataset, Folder):  # type: ignore[misc]  # its items are those of videos
    """One split of ROOT/train/CLASS/*.mp4 and ROOT/val/CLASS/*.mp4 (or test/); classes and errors as in `Folder`."""

    kind = "video"
    extensions = (
        *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"),
        *(".m2ts", ".mts", ".3gp", ".flv", ".ogv"),
    )


class ListedVideos(VideoDataset):
    """Videos ROOT/CLASS/FILE that a split file lists.

    Args:
        root: folder of the class folders.
        files: CLASS/FILE of each video.
        labels: class of each, as an index into `classes`.

    Raises:
        FileNotFoundError: some of them are absent; says how many, and names the first few.
    """

    def __init__(self, root: Path, classes: list[str], files: list[str], labels: list[int]):
        absent = [file for file in files if not (root / file).is_file()]
        if absent:
            where = f"{len(absent)} of the {len(files)} videos of the split are not in {root}"
            raise FileNotFoundError(f"{where}, which must hold CLASS/FILE: {listed(absent)}")
        self.classes = classes
        self.paths = np.array([str(root / file) for file in files])
        self.labels = np.array(labels, dtype=np.int64)


class HMDB51(ListedVideos):
    """HMDB-51: ROOT/CLASS/*.avi, and the official files CLASS_test_splitN.txt in the folder `lists`."""

    def __init__(self, root: str | Path, split: str, lists: str | Path, official_split: int = 1):
        super().__init__(Path(root), *hmdb51_lists(Path(lists), split, official_split))


class UCF101(ListedVideos):
    """UCF-101 and sets laid out like it: ROOT/CLASS/*.avi; classInd.txt, trainlist0N.txt and testlist0N.txt in `lists`."""

    def __init__(self, root: str | Path, split: str, lists: str | Path, official_split: int = 1):
        super().__init__(Path(root), *ucf101_lists(Path(lists), split, official_split))


def hmdb51_lists(lists: Path, split: str, official_split: int) -> tuple[list[str], list[str], list[int]]:
    """Classes, CLASS/FILE and label of every video for training, or for testing, of an official split.

    Raises:
        FileNotFoundError: there is no split file of that number.
        ValueError: a line that is not `FILE TAG`.
    """
    ending = f"_test_split{official_split}.txt"
    classes = sorted(path.name.removesuffix(ending) for path in lists.glob(f"[!.]*{ending}"))  # "._x" is of no class
    if not classes:
        raise FileNotFoundError(f"HMDB-51 needs the official split files CLASS{ending} in {lists}, which holds none")
    files, labels = [], []
    for label, name in enumerate(classes):
        for file, tag in _lines(
            lists / f"{name}{ending}", r"([^/]+\.\w+)\s+([012])", "FILE.avi TAG, TAG being 0, 1 or 2"
        ):
            if tag == HMDB51_TAGS[split]:
                files.append(f"{name}/{file}")
                labels.append(label)
    return classes, files, labels


def ucf101_lists(lists: Path, split: str, official_split: int) -> tuple[list[str], list[str], list[int]]:
    """As `hmdb51_lists`; also raises ValueError for a class that classInd.txt does not name, or numbers otherwise."""
    numbers = {name: int(number) for number, name in _lines(lists / "classInd.txt", r"(\d+)\s+(.+)", "NUMBER CLASS")}
    classes = sorted(numbers, key=numbers.__getitem__)
    path = lists / f"{split}list{official_split:02d}.txt"
    files, labels = [], []
    for file, name, number in _lines(
        path, r"(([^/]+)/[^/]+\.\w+)(?:\s+(\d+))?", "CLASS/FILE.avi and, for training, NUMBER"
    ):
        if name not in numbers or (number and int(number) != numbers[name]):
            raise ValueError(
                f"{path}: {file} {number or ''} does not agree with the classes of {lists / 'classInd.txt'}"
            )
        files.append(file)
        labels.append(classes.index(name))
    return classes, files, labels


def _lines(path: Path, pattern: str, needed: str) -> list[tuple[Any, ...]]:
    """The groups of `pattern` in every line that is not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"needs the official split file {path}, which is not there")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(pattern, line.strip())
        if match is None or ".." in line.split("/"):
            raise ValueError(f"{path}: line {number} must be {needed}, got {line.strip()[:80]!r}")
        found.append(match.groups())
    return found
