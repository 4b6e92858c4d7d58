"""Tables and plots of what runs scored, with the spread over their seeds.

    python tools/tables.py runs/a runs/b runs/b_seed_1 --out docs/results/NAME
    python tools/tables.py docs/results/NAME.csv --out docs/results/NAME --insert docs/results/PAGE.md
    python tools/tables.py runs/alpha_* --against stages.0.bandlimit --sizes 8 32 --out docs/results/NAME

A run is a folder of `s4nd train`, evaluated with `s4nd eval RUN/last.safetensors ...`. Runs whose configs differ in the seed
alone are one row: their mean and, with two seeds or more, the sample standard deviation. Writes NAME.csv (a line for each run,
method and size, all digits) and NAME.png, and prints the table in Markdown. The CSV can take the runs' place, to write
all of it anew.

`--insert` puts the table into a page, between the lines `<!-- table:NAME -->` and `<!-- /table -->`, and, where the page has
them, a table of the single runs between `<!-- runs:NAME -->` and `<!-- /runs -->`.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib import color_sequences
from matplotlib.figure import Figure
from result_lines import CONTROL, Line, read_csv, write_csv
from result_runs import read_runs

from s4nd.train.files import write_atomically

Row = tuple[tuple[str, str], ...]  # what a row of the table is of: names and words
Rows = dict[Row, dict[str, list[Line]]]  # its lines by column
COLORS = [*color_sequences["tab10"], *color_sequences["Dark2"]]
MARKERS = {"continuous": "o", "hold": "s", "dilate": "^", "hold+dilate": "D", "fold": "v", CONTROL: "o"}


def rows_of(lines: Sequence[Line], against: str | None = None, single: bool = False) -> Rows:
    """Lines of one row differ by seed alone, and in what the columns are: sizes, or the setting `against`.

    Args:
        single: a row for each run instead.

    Raises:
        ValueError: not all lines have this setting, or a seed stands in one cell twice.
    """
    shown = list(dict.fromkeys(key for line in lines for key in line.settings))
    if against is not None:
        lines = [line for line in lines if line.run]  # a majority has no settings
        without = {line.run for line in lines if against not in line.settings}
        if without:
            differs = ", ".join(shown) or "nothing"
            raise ValueError(
                f"--against {against}: not in {', '.join(sorted(without))}, or equal in all runs; what differs is {differs}"
            )
    with_frames = any(line.frames is not None for line in lines)
    rows: Rows = {}
    for line in lines:
        of = {"model": line.model} | {key: line.settings.get(key, "") for key in shown if key != against}
        of |= {"frames": _shown(line.frames)} if with_frames else {}
        of |= {"resample": line.resample} | ({} if against is None else {"size": str(line.size)})
        of |= {"seed": _shown(line.seed)} if single else {}
        column = str(line.size) if against is None else line.settings[against]
        cell = rows.setdefault(tuple(of.items()), {}).setdefault(column, [])
        if line.seed in (other.seed for other in cell):
            raise ValueError(
                f"needs one figure of {line.model} at {column}, {line.resample}, for seed {line.seed}, got two"
            )
        cell.append(line)
    return rows


def columns_of(rows: Rows) -> list[str]:
    """Numbers in their order, then words, and last "none"."""
    return sorted({column for cells in rows.values() for column in cells}, key=_order)


def _order(word: str) -> tuple[int, float, str]:
    try:
        return 0, float(word), ""
    except ValueError:
        return 1 + (word == "none"), 0.0, word


def spread(lines: Sequence[Line]) -> tuple[float, float | None]:
    """Mean and sample standard deviation of the values; None for the deviation of one."""
    values = [line.value for line in lines]
    return fmean(values), stdev(values) if len(values) > 1 else None


def markdown(lines: Sequence[Line], against: str | None = None, single: bool = False) -> str:
    """The table, and below it what its cells are."""
    rows = rows_of(lines, against, single)
    columns = columns_of(rows)
    about = [name for name, _ in next(iter(rows)) if name not in ("resample", "size", "seed")]
    last_names = [name for name, _ in next(iter(rows)) if name in ("resample", "size")]
    table = [[*about, "seeds", "epochs", "hours", *last_names, *columns]]
    table.append(["---"] * len(table[0]))
    for row, cells in rows.items():
        words, all_lines = dict(row), [line for column in cells.values() for line in column]
        seeds = list(dict.fromkeys(_shown(line.seed) for line in all_lines))
        epochs = list(dict.fromkeys(_shown(line.epochs) for line in all_lines))
        hours = list({line.run: line.hours for line in all_lines if line.hours is not None}.values())
        training = [", ".join(seeds), ", ".join(epochs), f"{fmean(hours):.2f}" if hours else ""]
        figures = [_cell(cells[column], len(seeds)) if column in cells else "-" for column in columns]
        table.append([*(words[name] for name in about), *training, *(words[name] for name in last_names), *figures])
    escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in table)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + f"\n\n{_legend(lines, rows)}"


def _cell(lines: Sequence[Line], seeds: int) -> str:
    digits = 1 if lines[0].unit == "%" else 2
    mean, deviation = spread(lines)
    what = f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")
    some = f" ({len(lines)})" if len(lines) < seeds else ""
    return what + some + ("*" if lines[0].size == lines[0].trained_size else "")


def _legend(lines: Sequence[Line], rows: Rows) -> str:
    cells = [cell for row in rows.values() for cell in row.values()]
    of = f" of {lines[0].images:,} {'images' if lines[0].frames is None else 'videos'}" if lines[0].images else ""
    parts = [f"Test {lines[0].metric} in {lines[0].unit}{of}"]
    if any(len(cell) > 1 for cell in cells):
        parts.append("mean ± sample standard deviation over the seeds, (1) of one alone")
    parts += ["* trained at this size", "hours of training a run"]
    return "; ".join(parts) + "."


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def draw(lines: Sequence[Line], against: str | None = None) -> Figure:
    """The metric against the size, or the setting: a line for each row, dashed for the control; the bars are a deviation.

    Words have no order, and their points are not joined.
    """
    rows = rows_of(lines, against)
    columns = columns_of(rows)
    places = {column: int(column) if against is None else i for i, column in enumerate(columns)}
    figure = Figure(figsize=(7.2, 3.6 + 0.16 * len(rows)), dpi=90, layout="constrained")
    axes = figure.subplots()
    joined = all(column == "none" or not _order(column)[0] for column in columns)
    colors: dict[Row, str] = {}
    names = [name for name, _ in next(iter(rows))]
    last = Counter(name.rpartition(".")[2] for name in names)  # of dotted keys: the table has them whole
    short = {name: end if last[end := name.rpartition(".")[2]] == 1 else name for name in names}
    for row, cells in rows.items():
        words = dict(row)
        method = words["resample"]
        same = tuple((name, word) for name, word in row if name != "resample")
        color = colors.setdefault(same, COLORS[len(colors) % len(COLORS)])
        known = [column for column in columns if column in cells]
        means, deviations = zip(*(spread(cells[column]) for column in known), strict=True)
        settings = [f"{short[name]} {word}" for name, word in row if name not in ("model", "resample") and word]
        axes.errorbar(
            [places[column] for column in known],
            means,
            [deviation or 0.0 for deviation in deviations],
            color=color,
            linestyle={CONTROL: "--", "": ":"}.get(method, "-") if joined else "",
            marker=MARKERS.get(method, "."),
            markersize=4,
            capsize=3 if any(deviations) else 0,
            label=", ".join([words["model"], *settings, *([method] if method else [])]),
        )
    if against is None:
        axes.set_xscale("log", base=2)
    axes.set_xticks([*places.values()], columns)
    axes.minorticks_off()
    axes.set(xlabel=against or "resolution (pixels per side)", ylabel=f"test {lines[0].metric} ({lines[0].unit})")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=7, handlelength=3, loc="outside lower center")
    return figure


def insert(page: Path, name: str, tables: dict[str, Callable[[], str]]) -> None:
    """Replace what stands in a page between the markers of each kind of table; the first kind must be there.

    Raises:
        ValueError: a marker is missing, has no end, or is there twice.
    """
    text = page.read_text(encoding="utf-8")
    for i, (kind, table) in enumerate(tables.items()):
        start, end = f"<!-- {kind}:{name} -->", f"<!-- /{kind} -->"
        if start not in text and i:
            continue
        if text.count(start) != 1:
            raise ValueError(f"{page} needs {start} once, got it {text.count(start)} times")
        before, rest = text.split(start)
        inside, found, after = rest.partition(end)
        if not found or f"<!-- {kind}:" in inside:
            raise ValueError(f"{page} needs {end} after {start}")
        text = f"{before}{start}\n{table()}\n{end}{after}"
    write_atomically(page, text.encode())


def read(sources: Sequence[Path]) -> list[Line]:
    """Lines of run folders, or of one CSV."""
    tables = [source for source in sources if source.suffix == ".csv"]
    if not tables:
        return read_runs(sources)
    if len(sources) > 1:
        raise ValueError(f"needs run folders, or one CSV alone, got {len(sources)} arguments with {tables[0]}")
    return read_csv(tables[0])


def chosen(
    lines: Sequence[Line], sizes: Sequence[int] | None = None, methods: Sequence[str] | None = None
) -> list[Line]:
    """The lines at these sizes and with these methods; ValueError for one of which there is none."""
    for name, wanted in {"size": sizes, "resample": methods}.items():
        known = sorted({getattr(line, name) for line in lines})
        if missing := [str(value) for value in wanted or [] if value not in known]:
            raise ValueError(
                f"nothing was measured of {name} {', '.join(missing)}, only of {', '.join(map(str, known))}"
            )
        lines = [line for line in lines if wanted is None or getattr(line, name) in wanted]
    return list(lines)


def main() -> None:
    """Write CSV and PNG, print the table, and insert it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or the CSV of a table")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix: .csv and .png are written")
    parser.add_argument(
        "--against", metavar="KEY", help="a key of the configs for the columns, such as stages.0.bandlimit"
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="only these; default: all that were measured")
    parser.add_argument("--resample", nargs="+", help="only these, such as hold+dilate control; default: all")
    parser.add_argument("--insert", type=Path, metavar="PAGE", help="a Markdown page with markers for the table")
    args = parser.parse_args()
    try:
        lines = chosen(read(args.runs), args.sizes, args.resample)
        tables = {
            "table": lambda: markdown(lines, args.against),
            "runs": lambda: markdown(lines, args.against, single=True),
        }
        print(tables["table"]())
        figure = draw(lines, args.against)
        if args.insert:
            insert(args.insert, args.out.name, tables)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out.with_name(f"{args.out.name}.csv"))
    figure.savefig(args.out.with_name(f"{args.out.name}.png"), pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
