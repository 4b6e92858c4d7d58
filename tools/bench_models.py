"""Time and memory of whole S4ND models against timm's, and against timm's models with other large or global kernels.

    python tools/bench_models.py
    python tools/bench_models.py --models s4nd_convnext_tiny --only inference runtime --batch-size 1 8 --out runs/bench_models

float32, on the CPU, at the trained size. Prints Markdown tables, and writes OUT.json and OUT.png. In each table all rows take
turns in one process; times are medians over the rounds. Ratios are to the rival in the faster of its memory layouts; below 1
the row is the better one. Memory is the peak of one run of a fresh copy of the model, input excluded: weights, kernels or
matrices, activations, gradients.
"""

import argparse
import copy
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from bench_families import ISO, Family, build, convnext, label, signal, vit
from bench_measure import Contestant, inference, measure, peak_memory
from bench_report import RATIO, Table, figure, markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from timm.utils import reparameterize_model
from torch import Tensor, nn

from s4nd import S4ND

# What is aimed at, at most, of the time of the rival, on two cores.
TARGETS = {
    "training": {"s4nd_convnext_tiny": 1.15, "s4nd_vit_base_patch16_224": 1.25, "s4nd_iso_tiny": 2.5},
    "inference": {"s4nd_convnext_tiny": 1.1, "s4nd_convnext_tiny fused": 1.1, "s4nd_vit_base_patch16_224 fused": 1.0},
    "runtime": {"s4nd_convnext_tiny": 1.1},
}


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rounds: int = 3
    batch_sizes: tuple[int, ...] = (16,)
    families: dict[str, Family] = field(  # the Mixer has a free matrix over all patches
        default_factory=lambda: {"ConvNeXt-T": convnext(), "ViT-B": vit(("mixer_b16_224",)), "ISO-tiny": ISO}
    )

    def of(self, labels: list[str]) -> "Settings":
        """The families of these models alone, each with its rival."""
        chosen = {}
        for title, family in self.families.items():
            if not set(labels).isdisjoint(family.models):
                models = {k: m for k, m in family.models.items() if k in {*labels, family.rival}}
                chosen[title] = replace(family, models=models)
        return replace(self, families=chosen)


QUICK = Settings(
    1,
    (2,),
    {
        "ConvNeXt": replace(convnext(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)), side=32),
        "ViT": replace(vit((), img_size=32, depth=1, embed_dim=16, num_heads=2), side=32),
        "ISO": replace(ISO, side=8),
    },
)


def layers(model: nn.Module) -> list[S4ND]:
    return [module for module in model.modules() if isinstance(module, S4ND)]


def step(model: nn.Module, u: Tensor) -> Contestant:
    """Forward, cross-entropy and backward to all parameters."""
    target = torch.zeros(len(u), dtype=torch.long)
    return Contestant(lambda: F.cross_entropy(model(u), target).backward(), tuple(model.parameters()))


def generation(model: nn.Module) -> Contestant:
    """The part of a training step that does not depend on the images: the layers' kernels, forward and backward."""

    def run() -> None:
        for layer in layers(model):
            lags = layer.all_kernel_lags(layer.base_size)  # as forward does: axes that are alike are computed together
            torch.autograd.backward(lags, [torch.ones_like(k) for k in lags])

    return Contestant(run, tuple(model.parameters()))


def memory(contestant: Callable[[nn.Module, Tensor], Contestant], model: nn.Module, u: Tensor) -> float:
    """Peak MiB of a run of a copy, which counts its weights too, and what it caches: a copy has nothing cached."""
    return peak_memory(Contestant(lambda: contestant(copy.deepcopy(model), u).run())) / 2**20


def table(
    contestant: Callable[[nn.Module, Tensor], Contestant],
    models: dict[str, nn.Module],
    side: int,
    batch_size: int,
    rounds: int,
    kernels: dict[str, Contestant],
) -> Table:
    """Time, images per second and memory of each model; of those with `kernels`, the time of these too."""
    signals = {row: signal(row, side, batch_size) for row in models}
    runs = {row: contestant(model, signals[row]) for row, model in models.items()}
    times = measure(runs | {f"kernels of {row}": run for row, run in kernels.items()}, rounds)
    for run in runs.values():
        run.forget()
    rows: Table = {}
    for row, model in models.items():
        ms = times[row]
        rows[row] = {
            "ms": ms,
            "images/s": 1e3 * batch_size / ms,
            "MiB": memory(contestant, model, signals[row]),
        }
        if row in kernels:
            rows[row][f"kernels{RATIO}step"] = times[f"kernels of {row}"] / ms
    return rows


def compare(rows: Table, rival: str, targets: dict[str, float]) -> Table:
    """Ratios of time and memory to the fastest row of the rival, with the targets of time."""
    base = min((columns for row, columns in rows.items() if label(row) == rival), key=lambda columns: columns["ms"])
    compared = {}
    for row, columns in rows.items():
        units = {"time": "ms", "memory": "MiB"}
        ratios = {f"{k}{RATIO}{rival}": columns[unit] / base[unit] for k, unit in units.items() if unit in columns}
        target = {f"target{RATIO}{rival}": targets[label(row)]} if label(row) in targets else {}
        compared[row] = columns | ratios | target
    return compared


def training(family: Family, batch_size: int, rounds: int) -> Table:
    """Training step: forward, cross-entropy, backward. The optimizer's part, which is the same work for each parameter of any
    model, is left out. `kernels`: generating all S4ND kernels, forward and backward, which is a part of the step."""
    models = {row: model.train() for row, model in build(family).items()}
    kernels = {row: generation(model) for row, model in models.items() if layers(model)}
    return table(step, models, family.side, batch_size, rounds, kernels)


def evaluation(family: Family, batch_size: int, rounds: int) -> Table:
    """Inference, with S4ND kernels kept, and fused by timm.utils.reparameterize_model."""
    models = {row: model.eval() for row, model in build(family).items()}
    fused = {row: reparameterize_model(model) for row, model in models.items() if layers(model)}
    models |= {row.replace(", ", " fused, "): m for row, m in fused.items()}
    return table(inference, models, family.side, batch_size, rounds, {})


def runtime(family: Family, batch_size: int, rounds: int) -> Table:
    """Inference in ONNX Runtime, on as many threads; S4ND models are exported fused."""
    import onnxruntime

    options, runs = onnxruntime.SessionOptions(), {}
    options.intra_op_num_threads = torch.get_num_threads()
    images = torch.randn(batch_size, 3, family.side, family.side)
    with tempfile.TemporaryDirectory() as folder:
        for row, model in build(replace(family, layouts=("contiguous",))).items():
            model, path = reparameterize_model(model.eval()), str(Path(folder) / "model.onnx")
            with torch.inference_mode():
                model(images)  # completes the plans
            torch.onnx.export(model, (images,), path, input_names=["images"], dynamo=True, verbose=False)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            runs[label(row)] = Contestant(partial(session.run, None, {"images": images.numpy()}))
    times = measure(runs, rounds)
    return {name: {"ms": ms, "images/s": 1e3 * batch_size / ms} for name, ms in times.items()}


SECTIONS: dict[str, Callable[[Family, int, int], Table]] = {
    "training": training,
    "inference": evaluation,
    "runtime": runtime,
}


def draw(results: dict[str, dict[str, Table]], path: Path) -> None:
    """A panel for each table: bars for the ratios of time and of memory, marks for the targets."""
    panels = [(f"{section}, {k}", rows) for section, tables in results.items() for k, rows in tables.items()]
    heights = [1 + 0.35 * len(rows) for _, rows in panels]
    sheet = Figure(figsize=(12, sum(heights)), dpi=80, layout="constrained")
    grid = sheet.subplots(len(panels), squeeze=False, height_ratios=heights).flat
    for axes, (title, rows) in zip(grid, panels, strict=True):
        bars(axes, title, rows)
    sheet.savefig(path, pil_kwargs={"optimize": True})


def bars(axes: Axes, title: str, rows: Table) -> None:
    """The ratios of one table."""
    rival = next(k for columns in rows.values() for k in columns if k.startswith(f"time{RATIO}")).split(RATIO)[1]
    at = range(len(rows))
    for quantity, shift, color in (("time", -0.2, "tab:blue"), ("memory", 0.2, "tab:gray")):
        values = [columns.get(f"{quantity}{RATIO}{rival}", float("nan")) for columns in rows.values()]
        drawn = axes.barh([y + shift for y in at], values, 0.4, label=quantity, color=color)
        axes.bar_label(drawn, [figure(x) for x in values], fontsize=7, padding=2)
    goals = [columns.get(f"target{RATIO}{rival}", float("nan")) for columns in rows.values()]
    axes.plot(goals, [y - 0.2 for y in at], "|", color="black", markersize=12, label="target of time")
    axes.set_yticks(at, list(rows), fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(f"{title}: ratios to {rival} in its faster layout", fontsize=10)
    axes.legend(fontsize=7, frameon=False)


def main() -> None:
    """Measure, print the tables, write the figures and the picture."""
    labels = [label for family in Settings().families.values() for label in family.models]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="all by default")
    parser.add_argument(
        "--models", nargs="+", choices=labels, default=labels, help="beside their rivals; all by default"
    )
    parser.add_argument("--rounds", type=int, help="3")
    parser.add_argument("--batch-size", type=int, nargs="+", help="one or several; 16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("docs/bench_models"), help="path of the results, no suffix")
    parser.add_argument("--quick", action="store_true", help="tiny models and one round, to try the tool itself")
    args = parser.parse_args()
    settings = (QUICK if args.quick else Settings()).of(args.models)
    settings = replace(
        settings,
        rounds=args.rounds or settings.rounds,
        batch_sizes=tuple(args.batch_size or settings.batch_sizes),
    )
    if min(settings.rounds, *settings.batch_sizes, args.threads) < 1:
        parser.error("--rounds, --batch-size and --threads must be positive")
    if not settings.families:
        parser.error(f"--quick has tiny stand-ins of the other models only, got --models {' '.join(args.models)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results: dict[str, dict[str, Table]] = {}
    for section in args.only:
        print(f"\n{section}: {' '.join(SECTIONS[section].__doc__.split())}", flush=True)
        for (title, family), batch_size in itertools.product(settings.families.items(), settings.batch_sizes):
            rows = SECTIONS[section](family, batch_size, settings.rounds)
            title = f"{title}, batch {batch_size}"
            results.setdefault(section, {})[title] = compare(rows, family.rival, TARGETS[section])
            print(f"\n{markdown(title, results[section][title])}", flush=True)
    machine = {"torch": torch.__version__, "timm": timm.__version__, "threads": args.threads, "cpus": os.cpu_count()}
    report = machine | {"settings": asdict(settings), "targets": TARGETS, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(results, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
