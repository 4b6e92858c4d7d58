"""`s4nd report`: what some runs did, as one HTML file that needs nothing else: no network, no script, no other file.

Curves of loss and accuracy (or PSNR, of restored images), the same against resolution where `s4nd eval` has left it in the
run's folder, the kernels of the first S4ND layer as drawn and as trained, the configs with what differs between them marked,
and the environment.
"""

import base64
import html
import io
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.utils import random_seed

from s4nd import S4ND, __version__
from s4nd.conv.dense import outer_product

from ..checkpoint import Meta, load_model
from ..config import Config, config_to_dict
from ..files import write_atomically
from ..model import build_model
from ..resolution import CURVES_FILE, Curve, plot_curves, read_curves, require_matplotlib, table
from ..state import flatten
from ..task import METRICS, TASKS, Metric

__all__ = ["write_report"]

STYLE = """body{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}table{border-collapse:collapse}
td,th{padding:.15em .8em;text-align:left;border-bottom:1px solid #ddd}td.differs{background:#fff3c4}
pre{background:#f6f6f6;padding:1em}img{max-width:100%}"""
HEADS = 6  # of a layer, drawn


@dataclass(frozen=True)
class Run:
    """A run directory."""

    folder: Path
    model: torch.nn.Module
    config: Config
    meta: Meta
    epochs: list[dict[str, Any]]  # records of log.jsonl
    steps: list[dict[str, Any]]  # of steps.jsonl
    curves: list[Curve]

    @property
    def metric(self) -> Metric:
        """What its figures are."""
        return TASKS[self.meta.task].metric


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report of these run directories; returns its path.

    Raises:
        FileNotFoundError, ValueError: a folder holds no run, or a damaged one, or their figures are not of one kind.
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    runs = [read_run(Path(folder)) for folder in folders]
    metric, curves = common_metric(runs), [curve for run in runs for curve in run.curves]
    parts = [
        "<h1>Training runs</h1>",
        _summary(runs, metric),
        *("<h2>Training</h2>", _image(_training(runs, metric), f"loss and {metric.name} by epoch and step")),
        *(
            [
                "<h2>Resolution</h2>",
                _image(plot_curves(curves, metric), f"{metric.name} by size"),
                _pre(table(curves, metric)),
            ]
            if curves
            else []
        ),
        *(part for run in runs for part in _kernels(run)),
        *("<h2>Configs</h2>", _configs(runs)),
        *("<h2>Environment</h2>", _pre(_environment())),
    ]
    page = f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Training runs</title><style>{STYLE}</style>"
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (page + "\n".join(parts) + "</html>\n").encode())
    return out


def read_run(folder: Path) -> Run:
    """All that a report tells of a run."""
    model, config, meta = load_model(folder / "last.safetensors")
    epochs, steps = _records(folder / "log.jsonl"), _records(folder / "steps.jsonl")
    path = folder / CURVES_FILE
    return Run(folder, model, config, meta, epochs, steps, read_curves(path) if path.is_file() else [])


def common_metric(runs: Sequence[Run]) -> Metric:
    """What the figures of all of them are, in a word.

    Raises:
        ValueError: they are of several kinds, which do not stand beside each other.
    """
    kinds = {run.metric.key: run for run in runs}
    if len(kinds) > 1:
        found = ", ".join(f"{run.folder} is {run.meta.task}" for run in kinds.values())
        raise ValueError(f"accuracies and PSNRs do not stand beside each other: {found}")
    return METRICS[next(iter(kinds))]


def _records(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; one that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _summary(runs: Sequence[Run], metric: Metric) -> str:
    rows = []
    for run in runs:
        seconds = sum(record.get("seconds", 0) for record in run.epochs)
        sizes = ", ".join(f"{stage.size} ({stage.epochs} epochs)" for stage in run.config.stages)
        parameters = f"{sum(p.numel() for p in run.model.parameters()):,}"
        figure = f"{metric.show(run.meta.accuracy)} ({run.meta.split})"
        rows.append(
            [
                str(run.folder),
                run.config.model.name,
                parameters,
                run.config.data.name,
                sizes,
                figure,
                f"{seconds:.0f}",
            ]
        )
    return _table(
        ["run", "model", "parameters", "data", "sizes", f"{metric.name} after the last epoch", "seconds"], rows
    )


def _training(runs: Sequence[Run], metric: Metric) -> Any:
    figure = require_matplotlib().Figure(figsize=(9.6, 3.2), dpi=110, layout="constrained")
    loss, judged, *more = figure.subplots(1, 3 if any(run.steps for run in runs) else 2)
    for i, run in enumerate(runs):
        x, key = [record["epoch"] for record in run.epochs], f"{run.meta.split}_{metric.key}"
        name = run.folder.name
        loss.plot(x, [record.get("train_loss") for record in run.epochs], color=f"C{i}", label=name)
        y = [metric.scale * record.get(key, float("nan")) for record in run.epochs]
        judged.plot(x, y, color=f"C{i}", label=name)
        for steps in more:
            steps.plot([r["step"] for r in run.steps], [r.get("loss") for r in run.steps], color=f"C{i}", linewidth=0.7)
            steps.set(xlabel="step", ylabel="loss of the step")
    loss.set(xlabel="epoch", ylabel="training loss")
    judged.set(xlabel="epoch", ylabel=f"{metric.name} ({metric.unit})")
    judged.legend(frameon=False, fontsize=8)
    return figure


def _kernels(run: Run) -> list[str]:
    """The first layer over two axes, as drawn from the seed and as trained; nothing for a model without one."""
    random_seed(run.config.seed)
    drawn = build_model(run.config, len(run.meta.classes), run.meta.stage)
    pairs = [layer for model in (drawn, run.model) if (layer := _first_layer(model)) is not None]
    if len(pairs) < 2:
        return []
    figure = require_matplotlib().Figure(figsize=(9.6, 3.4), dpi=110, layout="constrained")
    grid = figure.subplots(2, HEADS, squeeze=False)
    for axes, layer, name in zip(grid, pairs, ("as drawn", "as trained"), strict=True):
        with torch.no_grad():
            kernels = [layer.kernel_lags(axis, n) for axis, n in enumerate(layer.base_size)]
            images = outer_product([k[:, :, :HEADS] for k in kernels])[0]
        for ax, image in zip(axes, images, strict=False):
            top = image.abs().max().item() or 1.0
            ax.imshow(image.numpy(), cmap="RdBu", vmin=-top, vmax=top, interpolation="nearest")
        for ax in axes:
            ax.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name)
    title = f"<h2>Kernels of the first S4ND layer: {html.escape(str(run.folder))}</h2>"
    return [title, _image(figure, "kernels before and after training, by lag, each with its own colour scale")]


def _first_layer(model: torch.nn.Module) -> S4ND | None:
    layers = (m for m in model.modules() if isinstance(m, S4ND) and m.ndim == 2 and None not in m.base_size)
    return next(layers, None)


def _configs(runs: Sequence[Run]) -> str:
    flat = [flatten(config_to_dict(run.config)) for run in runs]
    keys = sorted({key for config in flat for key in config})
    rows = [[key, *(str(config.get(key, "-")) for config in flat)] for key in keys]
    return _table(["key", *(str(run.folder) for run in runs)], rows, mark=len(runs) > 1)


def _environment() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    libraries = {"s4nd": __version__, "torch": torch.__version__, "timm": timm.__version__}
    libraries |= {"torchvision": torchvision.__version__, "python": platform.python_version(), "device": device}
    return "\n".join(f"{name}: {value}" for name, value in libraries.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, mark: bool = False) -> str:
    """Rows of text; with `mark` those whose cells after the first differ are marked."""
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        kind = ' class="differs"' if mark and len({*row[1:]}) > 1 else ""
        lines.append("<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "".join([*lines, "</table>"])


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _image(figure: Any, what: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html.escape(what)}" src="data:image/png;base64,{data}"></p>'
