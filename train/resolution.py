"""The metric against resolution: a model at sizes that it was not trained at, as a table, a plot and a sentence."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data import ClipSampling, ImageDataset, ImageTransforms, Rendering, VideoDataset, make_loader
from .evaluate import evaluate
from .files import write_atomically
from .model import check_runs, to_input
from .task import ACCURACY, Metric, task_of

__all__ = ["Curve", "SizeRefused", "conclusion", "evaluate_sizes", "plot", "read_curves", "save_curves", "table"]


@dataclass(frozen=True)
class Curve:
    """Metric of one checkpoint per size (pixels per side), and why it has none at a size.

    `about`: of which weights, on what data and how (train/about.py; put together in train/commands/compare.py); None where an
    older file does not say.
    """

    name: str
    trained_size: int | None  # None: of an answer that needs no model
    accuracy: Mapping[int, float]  # or what else the metric is
    refused: Mapping[int, str] = field(default_factory=dict)
    about: Mapping[str, Any] | None = None


CURVES_FILE = "resolution.json"  # beside the plot, by default in the run's folder


class SizeRefused(ValueError):
    """A model does not run at a size."""


def evaluate_sizes(
    model: nn.Module,
    dataset: ImageDataset | VideoDataset,
    sizes: Sequence[int],
    *,
    batch_size: int = 128,
    workers: int = 0,
    device: torch.device | str = "cpu",
    skip_bad: bool = False,
    sampling: ClipSampling | None = None,
    control: int | None = None,
    transforms: ImageTransforms | None = None,
    noise: float | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> dict[int, float]:
    """The metric of the data's task, of a model on a data set rendered at each size.

    Args:
        model: takes (B, 3, size, size) of any size, or (B, 3, frames, size, size); moved to `device`, left in eval mode.
        dataset: of `build_dataset`.
        sizes: pixels per side.
        batch_size: images, or clips, at a time.
        skip_bad: leave out images that cannot be read; otherwise they raise BadImage.
        sampling: of the clips, for a data set of videos; None for images.
        control: the honest rival of running at an unseen size: images rendered at each size are resized to this one, the
            trained one (bilinear with antialiasing), and the model runs there; what it restored is resized back.
        transforms: how images are rendered; None: as `ImageTransforms()` says.
        noise: as data.noise of the config: the task is then to restore the images.
        rank, world_size: this process and the number of them, which share the images.

    Returns:
        {size: metric}.

    Raises:
        SizeRefused: the model does not run at a size; with its reason.
    """
    device = torch.device(device)
    model.to(device)
    task, accuracy = task_of(dataset.labels, noise), {}
    for size in sizes:
        if size < 1:
            raise ValueError(f"sizes must be at least 1, got {size}")
        clip = [] if sampling is None else [sampling.frames]
        black = torch.zeros(1, 3, *clip, control or size, control or size, dtype=torch.uint8)
        try:
            check_runs(model, to_input(black, model, device), type(model).__name__)
        except ValueError as error:
            raise SizeRefused(str(error)) from error
        batches = make_loader(
            dataset,
            size,
            batch_size,
            train=False,
            rendering=Rendering(transforms=transforms or ImageTransforms(), sampling=sampling, noise=noise),
            workers=workers,
            rank=rank,
            world_size=world_size,
            skip_bad=skip_bad,
        )
        accuracy[size] = evaluate(model, batches, device, batch_size, task, control).accuracy
    return accuracy


def table(curves: Sequence[Curve], metric: Metric = ACCURACY) -> str:
    """A row per checkpoint; the size it was trained at carries a star."""
    sizes = sorted({size for curve in curves for size in curve.accuracy})
    width = max(len("size"), *(len(curve.name) for curve in curves))
    lines = [f"{'size':<{width}}" + "".join(f"{size:>8} " for size in sizes)]
    for curve in curves:
        cells = [
            f"{metric.number(curve.accuracy[size]):>8}{'*' if size == curve.trained_size else ' '}"
            if size in curve.accuracy
            else f"{'-':>8} "
            for size in sizes
        ]
        lines.append(f"{curve.name:<{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in [*lines, f"{metric.name} in {metric.unit}, * trained at this size"])


def conclusion(curves: Sequence[Curve], metric: Metric = ACCURACY) -> str:
    """What the table shows: each checkpoint's change from its own size to the size farthest from it."""
    return "; ".join(_change(curve, metric) for curve in curves if curve.trained_size is not None)


def _change(curve: Curve, metric: Metric) -> str:
    own = curve.trained_size
    home = own if own is not None and own in curve.accuracy else min(curve.accuracy)
    trained = " (trained)" if home == own else ""
    start = f"{curve.name}: {metric.show(curve.accuracy[home])} at {home}{trained}"
    far = max(curve.accuracy, key=lambda size: (max(size, home) / min(size, home), size))
    if far == home:
        return start
    more = curve.accuracy[far] - curve.accuracy[home]
    change = f"{'rises' if more > 0 else 'falls'} by {metric.number(abs(more))} {metric.difference}"
    return f"{start}, {metric.show(curve.accuracy[far])} at {far}: {change}"


def require_matplotlib() -> Any:
    """matplotlib.figure, drawn without a display; ImportError names the extra that installs it."""
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ImportError('the plot needs matplotlib: pip install "s4nd[demo]"') from error
    return figure


def _shorten(label: str, longest: int = 48) -> str:
    """The end of a label that would leave no room for the plot."""
    return label if len(label) <= longest else "..." + label[3 - longest :]


def plot(curves: Sequence[Curve], path: str | Path, metric: Metric = ACCURACY) -> Path:
    """Write a PNG of the metric against resolution, the trained size of each checkpoint marked; returns its path."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"the plot must be a .png file, got {path}")
    figure = plot_curves(curves, metric)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def plot_curves(curves: Sequence[Curve], metric: Metric = ACCURACY) -> Any:
    """The figure of `plot`."""
    figure = require_matplotlib().Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    sizes = sorted({size for curve in curves for size in curve.accuracy})
    for i, curve in enumerate(curves):
        x = sorted(curve.accuracy)
        y = [metric.scale * curve.accuracy[size] for size in x]
        line, color = ("o-", f"C{i}") if curve.trained_size is not None else (".--", "0.4")
        axes.plot(x, y, line, color=color, markersize=4, label=_shorten(curve.name))
        if curve.trained_size is not None and curve.trained_size in curve.accuracy:
            home = metric.scale * curve.accuracy[curve.trained_size]
            axes.plot([curve.trained_size], [home], "*", color=color, markersize=16, markeredgecolor="white")
    axes.plot([], [], "*", color="0.4", markersize=12, linestyle="none", label="trained at this size")
    axes.set(xlabel="resolution (pixels per side)", ylabel=f"test {metric.name} ({metric.unit})", ylim=metric.limits)
    axes.set_xticks(sizes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def save_curves(curves: Sequence[Curve], path: str | Path) -> Path:
    """Write the numbers of the table as JSON, for `read_curves`; returns the path."""
    path = Path(path)
    trees = [{**asdict(curve), "accuracy": {str(n): a for n, a in curve.accuracy.items()}} for curve in curves]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(trees, indent=1) + "\n").encode())
    return path


def read_curves(path: str | Path) -> list[Curve]:
    """The inverse of `save_curves`; ValueError if the file holds anything else."""
    try:
        trees = json.loads(Path(path).read_text(encoding="utf-8"))
        return [
            Curve(
                str(tree["name"]),
                None if tree["trained_size"] is None else int(tree["trained_size"]),
                {int(n): float(a) for n, a in tree["accuracy"].items()},
                {int(n): str(reason) for n, reason in tree["refused"].items()},
                None if tree.get("about") is None else dict(tree["about"].items()),
            )
            for tree in trees
        ]
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not what `s4nd eval` writes: {error!r}") from None
