"""Parquet files in the Hugging Face image layout: an image column (struct of bytes and path), and an integer label or
boolean columns, each an attribute of the image, as CelebA has them on the Hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from s4nd.models.names import listed

from .dataset import ImageDataset
from .folder import is_hidden
from .images import BadImage, decode
from .names import difference

PATTERNS = {"train": ("train",), "test": ("test", "validation")}  # the first that is there
# What the Hub's data sets call their columns, ImageNet's, CIFAR-10's and CIFAR-100's among them; the first that is there.
IMAGE, LABEL = ("image", "img"), ("label", "fine_label")


class Parquet(ImageDataset):
    """One split: ROOT/train*.parquet, ROOT/test*.parquet (or validation*), or the same in ROOT/data/.

    The encoded images stay in memory as Arrow arrays, about the size of the files, and are decoded when asked for; forked
    workers share them. The names of the classes come from the metadata of the files, else they are the numbers. Where there
    is no label, all boolean columns are attributes, in their order, which must be the same in every file; columns of other
    types are left alone.

    Raises:
        FileNotFoundError: no such files.
        ValueError: not parquet, without the columns, with labels that are no classes, or of other classes than the other files
            of either split; the message names the file.
    """

    def __init__(self, root: str | Path, split: str):
        files, others = _find_files(Path(root), split), _find_other_files(Path(root), split)
        _check_kinds([*files, *others])
        labels = [_read_labels(file) for file in files]
        self.files, self.offsets = files, [0, *accumulate(map(len, labels))]
        if not self.offsets[-1]:
            raise ValueError(f"{files[0]} holds no row")
        names = _class_names([*files, *others])
        self.labels = np.concatenate(labels)
        if names is None:  # one split may lack the last class
            labels += [_read_labels(file) for file in others]
            names = [str(i) for i in range(1 + max(int(part.max()) for part in labels if len(part)))]
        self.classes = names
        for file, part in zip(files, labels, strict=False):
            if part.ndim == 1 and len(part) and not 0 <= part.min() <= part.max() < len(names):
                needed = f"0 to {len(names) - 1}" if names else "at least 0"
                raise ValueError(f"labels in {file} must be {needed}, got {part.min()} to {part.max()}")
        self.encoded = _chunks([_read_field(file, "bytes") for file in files])
        self.paths = _chunks([_read_field(file, "path") for file in files])

    def __getitem__(self, index: int) -> tuple[Tensor, int | np.ndarray]:
        index = int(index)
        data = self.encoded[index].as_py()
        if data is None:
            raise BadImage(self._where(index), "the row has no bytes")
        try:
            return decode(data, ""), self.label(index)
        except BadImage as error:
            raise BadImage(self._where(index), error.reason) from error

    def _where(self, index: int) -> str:
        file = np.searchsorted(self.offsets, index, side="right") - 1
        path = self.paths[index].as_py()
        return f"{self.files[file]}, row {index - self.offsets[file]}" + (f" ({path})" if path else "")


def _find_files(root: Path, split: str) -> list[Path]:
    """The files of a split, in alphabetical order.

    Raises:
        FileNotFoundError: there is none; says what was needed and what is there.
    """
    for folder in (root, root / "data"):
        for name in PATTERNS[split]:
            files = {path.resolve(): path for path in sorted(folder.glob(f"{name}*.parquet"), reverse=True)}
            if files:  # a link to one of them is no other file
                return sorted(files.values())
    there = sorted(path.name for path in root.iterdir() if not is_hidden(path.name)) if root.is_dir() else None
    found = "no such folder" if there is None else listed(there, 8) or "nothing"
    needed = " or ".join(f"{name}*.parquet" for name in PATTERNS[split])
    raise FileNotFoundError(f"parquet data for {split} must be {root}/{needed}, or in {root}/data; in {root}: {found}")


def _find_other_files(root: Path, split: str) -> list[Path]:
    """The files of the other split, if it is there."""
    try:
        return _find_files(root, "test" if split == "train" else "train")
    except FileNotFoundError:
        return []


class _Layout(NamedTuple):
    """What a file calls its columns, and the names of its classes: those that the `datasets` library writes, or None.

    Without a label they are the boolean columns.
    """

    image: str
    label: str | None
    classes: list[str] | None


def _read_layout(file: Path) -> _Layout:
    """The layout of a parquet file.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: not a parquet file, or without the columns.
    """
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
    import pyarrow as pa

    image, label = (next((name for name in known if name in schema.names), None) for known in (IMAGE, LABEL))
    attributes = [field.name for field in schema if pa.types.is_boolean(field.type)]
    if len({*schema.names}) < len(schema.names):
        raise ValueError(f"{file} has columns of the same name: {', '.join(schema.names)[:80]}")
    if not (
        image
        and pa.types.is_struct(schema.field(image).type)
        and schema.field(image).type.get_field_index("bytes") >= 0
        and (pa.types.is_integer(schema.field(label).type) if label else attributes)
    ):
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        columns = f"{' or '.join(IMAGE)} (struct of bytes and path) and {' or '.join(LABEL)} (an integer)"
        raise ValueError(f"{file} must have the columns {columns} or boolean ones, the attributes; found {found}")
    if not label:
        return _Layout(image, None, attributes)
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (TypeError, KeyError, ValueError):
        names = None
    if not isinstance(names, list | None) or not all(isinstance(name, str) for name in names or []):
        raise ValueError(f"{file}: the classes in its metadata must be a list of names, got {str(names)[:80]}")
    return _Layout(image, label, names)


def _check_kinds(files: list[Path]) -> None:
    """ValueError names two files, if some have labels and others attributes."""
    labelled = {_read_layout(file).label is not None: file for file in files}
    if len(labelled) > 1:
        raise ValueError(f"{labelled[True]} has labels and {labelled[False]} attributes: all files must have the same")


def _class_names(files: list[Path]) -> list[str] | None:
    """The names of the classes on which all files agree; None if none names them.

    Raises:
        ValueError: they do not agree; names the file.
    """
    first, *others = files
    names = _read_layout(first).classes
    for file in others:
        found = _read_layout(file).classes
        if (names is None) != (found is None):
            named, bare = (first, file) if found is None else (file, first)
            raise ValueError(f"{bare} does not name its classes, so they cannot be compared with those of {named}")
        odd = difference(names or [], found or [], str(first), str(file))
        if odd:
            raise ValueError(f"{file} has other classes than {first}: {odd}")
    return names


def _read_field(file: Path, name: str) -> Any:
    """A field of the images as one type, whatever shards have: bytes as large_binary, path as large_string, or nulls."""
    column = _read_layout(file).image
    with _opened(file) as parquet:
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = {"bytes": pa.large_binary(), "path": pa.large_string()}[name]
        if parquet.schema_arrow.field(column).type.get_field_index(name) < 0:
            return pa.chunked_array([pa.nulls(parquet.metadata.num_rows, kind)])
        field = pc.struct_field(parquet.read(columns=[f"{column}.{name}"])[column], name)
        if name == "bytes" and not (_is_binary(field.type) or pa.types.is_null(field.type)):
            raise ValueError(f"{file}: the bytes of {column} must be binary, got {field.type}")
        return field.cast(kind)


def _is_binary(kind: Any) -> bool:
    return "binary" in str(
        kind
    )  # binary, large_binary, binary_view, fixed_size_binary; older versions lack some of them


def _read_labels(file: Path) -> np.ndarray:
    """(rows,) int64; or (rows, attributes) uint8 of 0 and 1.

    Raises:
        ValueError: one is missing.
    """
    layout = _read_layout(file)
    with _opened(file) as parquet:
        import pyarrow as pa

        names = [layout.label] if layout.label else layout.classes or []
        table = parquet.read(columns=names)
        for name in names:
            if table[name].null_count:
                raise ValueError(f"{file}: {table[name].null_count} rows have no {name}")
        if layout.label:
            return table[layout.label].cast(pa.int64()).to_numpy()
        return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.uint8)


@contextmanager
def _opened(file: Path) -> Iterator:
    """A pyarrow ParquetFile; what goes wrong with it is a ValueError that names it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError('parquet files need pyarrow: pip install "s4nd[demo]"') from error
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from error


def _chunks(columns: Any) -> Any:
    """One chunked array of several."""
    import pyarrow as pa

    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=columns[0].type)
