"""Images with attributes that a list names: what they have in common, and lists as CSV files, ROOT/train.csv and test.csv."""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from s4nd.models.names import listed

from .dataset import ImageDataset
from .folder import is_hidden
from .images import read_image

logger = logging.getLogger("s4nd")


class AttributeImages(ImageDataset):
    """The images of a list that are there, with 0 or 1 for each attribute; those that are not are counted in a warning.

    Args:
        root: the folder below which the files are.
        source: the list, for messages.
        classes: names of the K attributes.
        files: (len,) of str, relative to `root`.
        labels: (len, K) of 0 and 1.

    Raises:
        FileNotFoundError: none of the images is there.
    """

    def __init__(self, root: Path, source: Path, classes: list[str], files: list[str], labels: list[list[int]]):
        here = np.array(_present(root, files), dtype=bool)
        if not here.any():
            first = f", such as {files[0][:80]}" if files else ""
            raise FileNotFoundError(f"none of the {len(files)} images that {source} lists is in {root}{first}")
        if not here.all():
            first, count = files[int(here.argmin())][:80], len(files) - int(here.sum())
            text = "%s: left out %d of %d images, which are not in %s; the first is %s"
            logger.warning(text, source, count, len(files), root, first)
        self.classes = classes
        self.paths = np.array([os.path.join(root, file) for file in files])[here]  # one array: workers do not copy it
        self.labels = np.array(labels, dtype=np.uint8)[here]

    def __getitem__(self, index: int) -> tuple[Tensor, np.ndarray]:
        return read_image(str(self.paths[index])), self.labels[index]


class CsvList(AttributeImages):
    """One split of ROOT/train.csv and ROOT/test.csv, which name images below ROOT.

    The first line is `file` and the names of the attributes, every other one a file and 0 or 1 for each; -1 may stand for 0
    in the whole file.

    Raises:
        FileNotFoundError: no such list, or none of its images is there.
        ValueError: the list is not like that; names the line.
    """

    def __init__(self, root: str | Path, split: str):
        root = Path(root)
        path = root / f"{split}.csv"
        if not path.is_file():
            there = sorted(entry.name for entry in root.iterdir() if not is_hidden(entry.name)) if root.is_dir() else []
            raise FileNotFoundError(f"images with a list need {path}; in {root}: {listed(there, 8) or 'nothing'}")
        rows = _csv_rows(path)
        where, header = next(rows, (f"{path}: line 1", []))
        if header[:1] != ["file"]:
            raise ValueError(f"{where} must be file,ATTRIBUTE,..., got {','.join(header)[:80]!r}")
        classes = checked_attributes(header[1:], where)
        lines: dict[str, str] = {}
        labels, absent = [], set()
        for where, (file, *values) in rows:
            add_file(file, where, lines, folders=True)
            if len(values) != len(classes):
                raise ValueError(f"{where} must have {len(classes)} values after the file, got {len(values)}")
            absent |= {*values} - {"1"}
            if not (absent <= {"0"} or absent <= {"-1"}):
                found = ", ".join(map(repr, sorted(absent)))[:80]
                raise ValueError(
                    f"{where}: values must be 0 and 1, or -1 and 1 in the whole file, besides 1 are {found}"
                )
            labels.append([int(value == "1") for value in values])
        super().__init__(root, path, classes, list(lines), labels)


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where a row is (file and line), and its cells without the spaces around them; empty lines are left out.

    Raises:
        ValueError: not CSV, or not UTF-8; names the line.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if row:
                    yield f"{path}: line {reader.line_num}", [cell.strip() for cell in row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: after line {reader.line_num}: not CSV in UTF-8: {error}") from None


def checked_attributes(names: Sequence[str], where: str) -> list[str]:
    """The names of the attributes.

    Raises:
        ValueError: there is none, one is empty or there twice, or one is longer than 100 characters or cannot be printed.
    """
    if not names or not all(names) or len({*names}) < len(names):
        raise ValueError(f"{where} must name attributes, each once, got {', '.join(names)[:80] or 'none'}")
    odd = next((name for name in names if len(name) > 100 or not name.isprintable()), None)
    if odd is not None:  # names travel into logs, terminals and checkpoints
        raise ValueError(f"{where} must name attributes in at most 100 printable characters, got {odd[:80]!r}")
    return list(names)


def add_file(file: str, where: str, lines: dict[str, str], folders: bool) -> None:
    """Enter a file into {file: where it is listed}.

    Args:
        folders: it may lie in folders below the root.

    Raises:
        ValueError: it does not stay below the root, or is listed already.
    """
    parts = file.split("/")
    if {*parts} & {"", ".", ".."} or "\\" in file or "\0" in file or (len(parts) > 1 and not folders):
        needed = (
            "a file below the folder of the data, without . and .."
            if folders
            else "the name of a file, without folders"
        )
        raise ValueError(f"{where} must begin with {needed}, got {file[:80]!r}")
    if file in lines:
        raise ValueError(f"{where}: {file[:80]} is listed already, at {lines[file]}")
    lines[file] = where


def _present(root: Path, files: Sequence[str]) -> list[bool]:
    """Which files are there. Each folder is listed once: to ask for every file takes minutes on a network drive."""
    listings = {}
    for folder in {os.path.dirname(file) for file in files}:
        path = root / folder
        listings[folder] = {*os.listdir(path)} if path.is_dir() else set()
    return [os.path.basename(file) in listings[os.path.dirname(file)] for file in files]
