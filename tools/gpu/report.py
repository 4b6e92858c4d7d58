"""What was measured as text, and as a picture if matplotlib is installed."""

from pathlib import Path
from typing import Any


def line(of: str, contestant: str, values: dict[str, Any]) -> str:
    """One row of the report in words."""
    figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return f"  {of:42} {contestant:36} {figures}"


def picture(report: dict[str, Any], path: Path) -> str | None:
    """A panel for each section that has times, and within it a row of points for each comparison. Why there is none, if so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: it needs matplotlib, pip install 's4nd[demo]'"
    panels = {name: times(section["results"]) for name, section in report["sections"].items()}
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        return "no picture: nothing was timed"
    heights = [1.2 + 0.3 * len(rows) for rows in panels.values()]
    sheet = Figure(figsize=(12, sum(heights)), dpi=80, layout="constrained")
    grid = sheet.subplots(len(panels), squeeze=False, height_ratios=heights).flat
    for axes, (name, rows) in zip(grid, panels.items(), strict=True):
        labels = list(dict.fromkeys(contestant for row in rows.values() for contestant in row))
        for label in labels:
            at = [(row[label], y) for y, row in enumerate(rows.values()) if label in row]
            marker = "|" if label == LIMIT else "o"
            axes.plot(*zip(*at, strict=True), marker, label=label, markersize=16 if label == LIMIT else 5, alpha=0.8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("ms", fontsize=8)
        axes.set_title(f"{name}, {report['machine']['device']}", fontsize=10)
        axes.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sheet.savefig(path, pil_kwargs={"optimize": True})
    return None


LIMIT = "memory's limit"


def times(results: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each contestant: of the device alone where that was measured."""
    rows = {}
    for of, contestants in results.items():
        found = {who: values.get("graph ms", values.get("ms")) for who, values in contestants.items()}
        found = {who: ms for who, ms in found.items() if ms}
        if found:
            rows[of] = found
    return rows
