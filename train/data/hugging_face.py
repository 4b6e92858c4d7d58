"""Data sets of the Hugging Face Hub, or of a folder in its layout: at once as timm's reader hfds opens them, or as a stream.

Only the bytes that stand in a row are decoded, never a file or an address that it names, and no code of a data set runs: the
versions of `datasets` that could are older than the extra takes.
"""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .dataset import ImageDataset
from .images import BadImage, decode
from .readers import Reading
from .streams import Sample, Stream, Truncated


class HuggingFace(ImageDataset):
    """One split of a data set NAME, downloaded and kept as files of Arrow.

    Args:
        name: on the Hub, or a folder of files of parquet or others.
        root: where what is downloaded is kept; None: where `datasets` keeps it.

    Raises:
        ImportError: datasets is not installed.
        ValueError: no such data set or split, or no such columns; or labels that are no classes.
    """

    def __init__(self, name: str, root: str | Path | None, split: str, reading: Reading):
        _require_datasets()
        from timm.data.readers.reader_hfds import ReaderHfds

        keys = {"input_key": reading.input_key, "target_key": reading.target_key}
        reader = reading.open(split, lambda part: _opened(ReaderHfds, name, root, part, **keys))
        self.where, self.rows = f"hfds/{name}, {reader.split}", reader.dataset
        if not len(self.rows):
            raise ValueError(f"{self.where} holds no row")
        there = dict(self.rows.features)
        if self.rows.data.column(reading.input_key).null_count == len(
            self.rows
        ):  # timm makes a column that is not there
            del there[reading.input_key]
        _check_columns(there, reading, self.where)
        self.image = reading.input_key
        self.classes = reading.classes(list(reader.class_to_idx) or None, self.where)
        self.labels = np.asarray(self.rows.with_format("numpy")[reading.target_key])
        if self.labels.dtype.kind not in "iu" or not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            bad = [label for label in self.rows[reading.target_key] if label not in range(len(self.classes))]
            raise ValueError(f"{self.where}: labels must be 0 to {len(self.classes) - 1}, got {bad[0]!r}")
        self.labels = self.labels.astype(np.int64)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where, image = f"{self.where}, row {index}", self.rows[int(index)][self.image]
        if not image or image["bytes"] is None:
            raise BadImage(where, "the row has no bytes")
        return decode(image["bytes"], where), int(self.labels[index])


class HuggingFaceStream(Stream):
    """The same of files of parquet, which the Hub has of its data sets, read as they are needed and not downloaded before.

    A shard is a file. Timm's reader says which they are; they are read here, since `datasets` would divide them among workers.

    Raises:
        ValueError: as `HuggingFace`, or the data set is not of parquet files.
    """

    def __init__(self, name: str, root: str | Path | None, split: str, reading: Reading):
        _require_datasets()
        from timm.data.readers.reader_hfids import ReaderHfids

        # The number of samples, which the Hub may not say, is counted below.
        reader = reading.open(split, lambda part: _opened(ReaderHfids, name, root, part, num_samples=1))
        where = f"hfids/{name}, {reader.split}"
        self.files = [str(file) for file in reader.builder.config.data_files[reader.split]]
        odd = [file for file in self.files if not file.endswith(".parquet")]
        if odd:
            raise ValueError(f"{where}: a stream must be of files of parquet, got {odd[0]}; hfds/{name} takes others")
        features = reader.builder.as_streaming_dataset(split=reader.split).features
        _check_columns(features, reading, where)
        names = getattr(features[reading.target_key], "names", None)
        self.columns = reading.input_key, reading.target_key
        lengths = []
        for file in self.files:
            with _opened_parquet(file) as parquet:
                lengths.append(parquet.metadata.num_rows)
        super().__init__(reading.classes(names, where), lengths, reading.shuffle)

    def where(self, shard: int) -> str:
        return self.files[shard]

    def samples(self, shard: int, wanted: Container[int]) -> Iterator[Sample | BadImage | None]:
        place, file = 0, self.files[shard]
        image, label = self.columns
        try:
            with _opened_parquet(file) as parquet:
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if not any(i in wanted for i in range(place, place + rows)):
                        yield from [None] * rows
                        place += rows
                        continue
                    # few at a time: a small file may hold the same large image many times
                    for batch in parquet.iter_batches(16, row_groups=[group], columns=[image, label]):
                        for i in range(len(batch)):
                            is_wanted = place in wanted
                            where = f"{file}, row {place}"
                            yield (
                                _sample_of(batch[image][i].as_py(), batch[label][i].as_py(), where)
                                if is_wanted
                                else None
                            )
                            place += 1
        except Exception as error:  # of damaged files pyarrow raises ArrowInvalid, OSError, and more
            yield Truncated(file, f"{type(error).__name__}: {error}")


def _sample_of(image: Any, label: Any, where: str) -> Sample | BadImage:
    """What the columns of a row make."""
    if not image or image["bytes"] is None:
        return BadImage(where, "the row has no bytes")
    if type(label) is not int or label < 0:
        return BadImage(where, f"its label must be the number of a class, got {label!r}")
    return Sample(image["bytes"], label, where)


def _require_datasets() -> None:
    """ImportError names the extra that installs it."""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError('hfds/ and hfids/ data sets need datasets: pip install "s4nd[hf]"') from error


def _opened(reader: Any, name: str, root: str | Path | None, split: str, **options: Any) -> Any:
    """A reader of timm's.

    Raises:
        LookupError: there is no such split.
        ValueError: it cannot be opened.
    """
    import datasets

    try:
        splits = datasets.get_dataset_split_names(name)
        if split not in splits:
            raise LookupError(f"hfds/{name} has {', '.join(splits)}")
        return reader(name, root=None if root is None else str(root), split=split, **options)
    except LookupError as error:
        if isinstance(error, KeyError):
            raise ValueError(f"{name} cannot be opened as a Hugging Face data set: {error}") from error
        raise
    except Exception as error:  # of what is not there, not reachable or not understood
        raise ValueError(f"{name} cannot be opened as a Hugging Face data set: {error}") from error


def _check_columns(features: Any, reading: Reading, where: str) -> None:
    """ValueError unless there are columns of an image and of the number of a class."""
    import datasets

    image, label = (features.get(key) for key in (reading.input_key, reading.target_key))
    numbers = isinstance(label, datasets.ClassLabel) or "int" in str(getattr(label, "dtype", ""))
    if not isinstance(image, datasets.Image) or not numbers:
        found = ", ".join(f"{key}: {feature}" for key, feature in features.items())[:200]
        raise ValueError(
            f"{where}: data.input_key={reading.input_key} must be a column of images and data.target_key={reading.target_key} "
            f"one of class numbers; found {found}"
        )


@contextmanager
def _opened_parquet(file: str) -> Iterator[Any]:
    """A pyarrow ParquetFile of a path or an address of the Hub."""
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
        yield parquet
