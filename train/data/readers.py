"""What timm's readers are told of a data set, and the names of its classes: of WebDataset shards and Hugging Face data sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from timm.data.readers.class_map import load_class_map

from .names import difference

READERS = ("wds", "hfds", "hfids")  # as in the name wds/NAME
STREAMS = ("wds", "hfids")
SPLITS = {"train": ("train",), "test": ("test", "validation", "val")}  # the first that is there
T = TypeVar("T")


def reader_of(name: str) -> str | None:
    """The reader of a data set's name; None for data sets that have none."""
    kind, slash, rest = name.partition("/")
    return kind if kind in READERS and slash and rest else None


@dataclass(frozen=True)
class Reading:
    """What to read, in timm's words.

    Attributes:
        train_split, test_split: names of the splits, or a pattern of shards, `train-{000..009}.tar` or with the number of
            samples `train-{000..009}.tar|50000`; None: train, and the first of test, validation and val that is there.
        class_map: a text file with the name of a class in each line, in the order of their numbers.
        input_key, target_key: columns of the image and of its class, of Hugging Face data sets.
        shuffle: samples of a stream that are shuffled together in training, after the shards.
    """

    train_split: str | None = None
    test_split: str | None = None
    class_map: str | None = None
    input_key: str = "image"
    target_key: str = "label"
    shuffle: int = 8192

    def open(self, split: str, opened: Callable[[str], T]) -> T:
        """What `opened` makes of the name of a split; of the first of several that it does not miss, with a LookupError."""
        given = self.train_split if split == "train" else self.test_split
        names = SPLITS[split] if given is None else (given,)
        missing = []
        for name in names:
            try:
                return opened(name)
            except LookupError as error:
                missing.append(str(error.args[0]))
        key = f"data.{split}_split"
        raise ValueError(f"there is no split {' or '.join(names)} for {split}, {key} names it: {missing[0]}")

    def classes(self, found: Sequence[str] | None, where: str) -> list[str]:
        """The names of the classes.

        Args:
            found: those that the data set itself says; None: it does not.
            where: the data set, for errors.

        Raises:
            FileNotFoundError: there is no such class map.
            ValueError: nothing names them, both do and differ, or the class map is no text with a name in each line.
        """
        if self.class_map is None:
            if found is None:
                raise ValueError(
                    f"{where} does not name its classes: data.class_map must, a text file with one in each line"
                )
            return list(found)
        path = Path(self.class_map)
        if path.suffix != ".txt":
            raise ValueError(f"data.class_map must be a .txt file with the name of a class in each line, got {path}")
        if not path.is_file():
            raise FileNotFoundError(f"data.class_map: no file {path}")
        try:
            count, places = len(path.read_text(encoding="utf-8").splitlines()), load_class_map(str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be text in UTF-8: {error}") from None
        if not places or len(places) != count or "" in places:
            raise ValueError(f"{path} must name each class once, a line each: {len(places)} names in {count} lines")
        odd = difference(list(places), found, str(path), where) if found is not None else ""
        if odd:
            raise ValueError(f"{path} and {where} must name the same classes: {odd}")
        return list(places)
