"""Parquet files in the Hugging Face image layout: a column `image` (struct of bytes and path), and an integer `label`."""

import json
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch import Tensor

from .dataset import ImageDataset
from .images import BadImage, decode

PATTERNS = {"train": ("train",), "test": ("test", "validation")}  # the first that is there


class Parquet(ImageDataset):
    """One split: ROOT/train*.parquet, ROOT/test*.parquet (or validation*), or the same in ROOT/data/.

    The encoded images stay in memory as Arrow arrays, about the size of the files, and are decoded when asked for; forked
    workers share them. The names of the classes come from the metadata of the file, else they are the numbers.

    Raises:
        FileNotFoundError: no such files.
        ValueError: not parquet, without the columns, or with labels that are no classes.
    """

    def __init__(self, root: str | Path, split: str):
        files = find_files(Path(root), split)
        tables = [read_columns(file) for file in files]
        self.files, self.offsets = files, [0, *accumulate(len(table) for table in tables)]
        self.encoded = _chunks([_field(table, "bytes") for table in tables])
        self.paths = _chunks([_field(table, "path") for table in tables])
        self.labels = np.concatenate([labels_of(table, file) for table, file in zip(tables, files, strict=True)])
        self.classes = class_names(tables[0]) or [str(i) for i in range(self._count_classes(Path(root), split))]
        if not len(self.labels):
            raise ValueError(f"{files[0]} holds no row")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            seen = f"{self.labels.min()} to {self.labels.max()}"
            raise ValueError(f"labels in {files[0]} must be 0 to {len(self.classes) - 1}, got {seen}")

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = int(index)
        data = self.encoded[index].as_py()
        if data is None:
            raise BadImage(self._where(index), "the row has no bytes")
        try:
            return decode(data, ""), int(self.labels[index])
        except BadImage as error:
            raise BadImage(self._where(index), error.reason) from error

    def _where(self, index: int) -> str:
        file = np.searchsorted(self.offsets, index, side="right") - 1
        path = self.paths[index].as_py()
        return f"{self.files[file]}, row {index - self.offsets[file]}" + (f" ({path})" if path else "")

    def _count_classes(self, root: Path, split: str) -> int:
        """Without names: the highest label of either split, since one may lack a class."""
        other = "test" if split == "train" else "train"
        try:
            labels = [labels_of(read_columns(file, ["label"]), file) for file in find_files(root, other)]
        except FileNotFoundError:
            labels = []
        return 1 + max((int(each.max()) for each in [self.labels, *labels] if len(each)), default=-1)


def find_files(root: Path, split: str) -> list[Path]:
    """The files of a split, in alphabetical order.

    Raises:
        FileNotFoundError: there is none; says what was needed and what is there.
    """
    for folder in (root, root / "data"):
        for name in PATTERNS[split]:
            files = sorted(folder.glob(f"{name}*.parquet"))
            if files:
                return files
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else "no such folder"
    needed = " or ".join(f"{name}*.parquet" for name in PATTERNS[split])
    raise FileNotFoundError(f"parquet data for {split} must be {root}/{needed}, or in {root}/data; in {root}: {found}")


def read_columns(file: Path, columns: tuple[str, ...] | list[str] = ("image", "label")):
    """Columns of a parquet file as a pyarrow Table.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: not a parquet file, or without the columns.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError('parquet files need pyarrow: pip install "s4nd[demo]"') from error
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            _check(schema, columns, file)
            return parquet.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from error


def _check(schema, columns, file: Path) -> None:
    import pyarrow as pa

    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    needed = f"{file} must have the columns image (struct of bytes and path) and label (an integer); found {found}"
    if not set(columns) <= set(schema.names) or not pa.types.is_integer(schema.field("label").type):
        raise ValueError(needed)
    if "image" in columns:
        kind = schema.field("image").type
        if (
            not pa.types.is_struct(kind)
            or kind.get_field_index("bytes") < 0
            or not _is_binary(kind.field("bytes").type)
        ):
            raise ValueError(needed)


def _is_binary(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def labels_of(table, file: Path) -> np.ndarray:
    """(rows,) int64 labels of a table.

    Raises:
        ValueError: one is missing.
    """
    if table["label"].null_count:
        raise ValueError(f"{file}: {table['label'].null_count} rows have no label")
    return table["label"].to_numpy().astype(np.int64)


def class_names(table) -> list[str] | None:
    """The names of the classes, as the `datasets` library writes them into the file; None if it did not."""
    try:
        info = json.loads(table.schema.metadata[b"huggingface"])
        names = info["info"]["features"]["label"]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return [str(name) for name in names]


def _field(table, name: str):
    """A field of the image column; nulls where the layout has no such field."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if table["image"].type.get_field_index(name) < 0:
        return pa.chunked_array([pa.nulls(len(table), pa.string())])
    return pc.struct_field(table["image"], name)


def _chunks(columns):
    """One chunked array of several."""
    import pyarrow as pa

    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=columns[0].type)
