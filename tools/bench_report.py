"""What the benchmarks report with: Markdown tables and one figure."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Table = dict[str, dict[str, float]]  # row: column: value
COLORS = {"s4d": "tab:blue", "s4": "tab:orange", "conv": "tab:gray", "attention": "tab:gray", "reference": "tab:gray"}
RATIO = " / "  # in the name of a column: a ratio


def markdown(title: str, table: Table) -> str:
    """A table with the title above its rows, ratios last; a row without a column has a dash there."""
    columns = dict.fromkeys(column for row in table.values() for column in row)
    columns = sorted(columns, key=lambda column: RATIO in column)
    lines = [[title, *columns], ["---"] * (1 + len(columns))]
    for name, row in table.items():
        lines.append([name, *(figure(row[column]) if column in row else "-" for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figure(x: float) -> str:
    """Two digits or three."""
    return f"{x:.{3 if x < 0.1 else 2 if x < 10 else 1 if x < 100 else 0}f}"


def draw(results: dict[str, dict[str, Table]], targets: dict[str, float], path: Path) -> None:
    """A panel for each kind of figure that was measured."""
    training = {k: t for k, t in results.get("stages", {}).items() if k.startswith("batch")}
    against_conv = training | {f"eval, {k}": t for k, t in results.get("eval", {}).items()}
    panels = [lambda axes, k=k, t=t: bars(axes, times(t), f"training step, {k}", "ms") for k, t in training.items()]
    if against_conv:
        panels.append(
            lambda axes: bars(axes, merged(against_conv), "time / best 7 x 7 depthwise convolution", "", line=1)
        )
    others = {section: results[section] for section in ("reference", "video", "attention") if section in results}
    if others:
        panels.append(lambda axes: rivals(axes, others, targets))
    if "memory" in results:
        (k, t), *_ = results["memory"].items()
        panels.append(
            lambda axes: bars(axes, t, f"peak memory of a training step, {k}", "activations", line=targets["memory"])
        )
    if "growth" in results:
        panels.append(lambda axes: growth(axes, results["growth"]))
    rows = -(-len(panels) // 2)
    sheet = Figure(figsize=(12, 3.6 * rows), dpi=80, layout="constrained")
    grid = sheet.subplots(rows, min(2, len(panels)), squeeze=False).flat
    for axes in grid[len(panels) :]:
        axes.remove()
    for panel, axes in zip(panels, grid, strict=False):
        panel(axes)
    sheet.savefig(path, pil_kwargs={"optimize": True})


def times(table: Table) -> Table:
    """The milliseconds of the main contestants at each stage, without the sum."""
    stages = {name: row for name, row in table.items() if not name.startswith("sum")}
    return {name: {k: row[k] for k in ("s4d", "s4", "conv")} for name, row in stages.items()}


def merged(tables: dict[str, Table]) -> Table:
    """The ratios of all tables side by side, the columns told apart by the tables' names."""
    rows: Table = {}
    for title, table in tables.items():
        for name, row in table.items():
            ratios = {f"{k.split(RATIO)[0]}, {title}": x for k, x in row.items() if RATIO in k and "channels" not in k}
            rows.setdefault(name, {}).update(ratios)
    return rows


def bars(axes: Axes, table: Table, title: str, unit: str, line: float | None = None) -> None:
    """A group of bars for each row, a bar for each column; a line at this height."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    width, seen = 0.8 / len(columns), dict.fromkeys(COLORS, 0)
    for i, column in enumerate(columns):
        method = column.split(",")[0].split()[0]
        at = [j + (i + 0.5) * width - 0.4 for j in range(len(table))]
        heights = [row.get(column, float("nan")) for row in table.values()]
        drawn = axes.bar(at, heights, width, label=column, color=COLORS[method], alpha=1 / (1 + 0.7 * seen[method]))
        axes.bar_label(drawn, [figure(x) for x in heights], fontsize=6, rotation=90, padding=2)
        seen[method] += 1
    if line is not None:
        axes.axhline(line, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(table)), list(table), fontsize=8)
    axes.margins(y=0.3)  # for the legend
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit, fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="upper center", ncols=len(columns), columnspacing=1, handlelength=1)


def rivals(axes: Axes, sections: dict[str, dict[str, Table]], targets: dict[str, float]) -> None:
    """Every ratio to something else than the 2-D convolution as a bar, with its target as a mark."""
    ratios = [
        (f"{name}, {column}", x, targets[section])
        for section, tables in sections.items()
        for table in tables.values()
        for name, row in table.items()
        for column, x in row.items()
        if RATIO in column
    ]
    labels, values, goals = zip(*ratios, strict=True)
    colors = [COLORS[label.split(", ")[1].split()[0]] for label in labels]
    axes.margins(x=0.15)
    axes.bar_label(axes.barh(labels, values, color=colors), [figure(x) for x in values], fontsize=7, padding=2)
    axes.plot(goals, labels, "|", color="black", markersize=10, label="target")
    axes.set_xscale("log")
    axes.set_xlim(left=min(*values, *goals) / 2)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("time / reference form, 3 x 7 x 7 convolution, attention", fontsize=10)
    axes.legend(fontsize=7, frameon=False)


def growth(axes: Axes, tables: dict[str, Table]) -> None:
    """Time against size, with the fitted exponents."""
    for title, table in tables.items():
        ((_, row),) = table.items()
        points = {int(n): ms for n, ms in row.items() if n != "exponent"}
        axes.loglog(list(points), list(points.values()), "o-", label=f"{title}: size ^ {row['exponent']:.2f}")
    axes.set_title("training step of one s4d layer against its size", fontsize=10)
    axes.set_xlabel("samples along the growing axes", fontsize=8)
    axes.set_ylabel("ms", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
