"""A figure of a run as a line of a CSV, with all that a table needs to know of it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

CONTROL = "control"


@dataclass(frozen=True)
class Line:
    """What one run scored with one method at one size. None, or an empty cell, is what is not known or does not apply."""

    run: str  # the folder's name
    model: str
    seed: int | None
    epochs: int | None
    hours: float | None  # of training, by the run's log
    data: str
    images: int | None  # or videos, of the test data
    resample: str  # of `resample`, or CONTROL: resized to the trained size
    frames: int | None
    trained_size: int | None  # pixels per side
    size: int
    metric: str
    unit: str
    value: float  # in this unit
    settings: Mapping[str, str] = field(default_factory=dict)  # what differs between the configs, by its dotted key


COLUMNS = {column.name: column.type for column in fields(Line) if column.name != "settings"}
BEFORE = ("run", "model")  # the settings


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """A column for each field, and one for each setting, after the model."""
    settings = list(dict.fromkeys(key for line in lines for key in line.settings))
    after = [name for name in COLUMNS if name not in BEFORE]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*BEFORE, *settings, *after])
        for line in lines:
            own = {name: _text(getattr(line, name)) for name in COLUMNS}
            differs = [line.settings.get(key, "") for key in settings]
            writer.writerow([*(own[name] for name in BEFORE), *differs, *(own[name] for name in after)])


def read_csv(path: Path) -> list[Line]:
    """The inverse of `write_csv`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other columns, no line, or a cell that is no number where one must be; names the line.
    """
    lines = []
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, restkey="more cells than columns", restval=None)
        missing = COLUMNS.keys() - {*(table.fieldnames or [])}
        if missing:
            raise ValueError(f"{path}: needs the columns of tools/tables.py, and has no {', '.join(sorted(missing))}")
        for cells in table:
            if None in cells.values() or table.restkey in cells:
                raise ValueError(f"{path}, line {table.line_num}: needs {len(table.fieldnames)} cells")
            try:
                own = {name: _value(name, cells[name], kind) for name, kind in COLUMNS.items()}
            except ValueError as error:
                raise ValueError(f"{path}, line {table.line_num}: {error}") from None
            lines.append(Line(**own, settings={key: cell for key, cell in cells.items() if key not in own and cell}))
    if not lines:
        raise ValueError(f"{path} holds no line")
    return lines


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _value(name: str, cell: str, kind: Any) -> Any:
    if kind is str:
        return cell
    number, *empty = getattr(kind, "__args__", (kind,))
    if not cell and empty:
        return None
    try:
        return number(cell)
    except ValueError:
        raise ValueError(f"{name} must be of type {number.__name__}, got {cell!r}") from None
