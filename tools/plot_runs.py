"""Accuracy of some runs, or the PSNR of what they restore, after each epoch, in one picture.

    python tools/plot_runs.py runs/scifar/s4nd_seq_tiny runs/scifar/s4nd_seq_tiny_dirac --labels zoh dirac --out runs/x.png

A line is a run, the number beside its name its figure after the last epoch. A run is drawn as far as it came; with its
resolutions, kernels and configs it is told by `s4nd report`.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s4nd.train.commands.report import Run, common_metric, read_run

STYLES = ("-", "--", "-.", ":")  # runs that are equal lie upon each other


def draw(runs: Iterable[Run], labels: Sequence[str]) -> Figure:
    """The figure against the epoch, a line per run.

    Raises:
        ValueError: runs that were judged by different splits or figures, or one that has no epoch in its log.
    """
    runs = list(runs)
    splits = {run.meta.split for run in runs}
    if len(splits) > 1:
        raise ValueError(f"need runs that were judged by one split, got {' and '.join(sorted(splits))}")
    (split,), metric = splits, common_metric(runs)
    figure = Figure(figsize=(5.6, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        key = f"{split}_{metric.key}"
        points = [(record["epoch"], metric.scale * record[key]) for record in run.epochs if key in record]
        if not points:
            raise ValueError(f"{run.folder} has no {key} in log.jsonl")
        style = STYLES[i % len(STYLES)]
        axes.plot(
            *zip(*points, strict=True),
            style,
            marker="o",
            markersize=3,
            label=f"{label}: {points[-1][1]:.{metric.digits}f}",
        )
    axes.set(xlabel="epoch", ylabel=f"{split} {metric.name} ({metric.unit})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Draw and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories of s4nd train")
    parser.add_argument("--labels", nargs="+", help="one for each run; by default the folders' names")
    parser.add_argument("--out", type=Path, default=Path("docs/runs.png"))
    args = parser.parse_args()
    labels = args.labels or [folder.name for folder in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"need a label for each of the {len(args.runs)} runs, got {len(labels)}")
    figure = draw([read_run(folder) for folder in args.runs], labels)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
