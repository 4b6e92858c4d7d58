"""Time and memory of the S4ND layer against what it replaces, at the stages of ConvNeXt-T and beyond them.

    python tools/bench_layer.py
    python tools/bench_layer.py --only stages eval --rounds 15 --out runs/bench_layer

float32, on the CPU. Prints Markdown tables, and writes OUT.json and OUT.png. In each comparison all contestants take turns in
one process; times are medians over the rounds, ratios are ratios of the medians (below 1: S4ND is the faster one), and a
convolution counts in the better of its two memory layouts. Sizes are channels x height x width, or channels x frames x ...
"""

import argparse
import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import linear_regression

import torch
import torch.nn.functional as F
from bench_measure import Contestant, ReferenceForm, inference, measure, peak_memory, training
from bench_report import RATIO, Table, draw, markdown
from torch import Tensor, nn

from s4nd import S4ND
from s4nd.conv import EVERYWHERE, separable_conv

# What is aimed at, at most: of auto to the best algorithm, of S4ND to the section's rival, of memory in activations.
TARGETS = {"auto": 1.15, "reference": 0.1, "video": 0.2, "attention": 1.25, "memory": 4.0}


@dataclass(frozen=True)
class Settings:
    """What is measured; sizes are H x n_1 x ... x n_D."""

    rounds: int = 7
    stages: dict[str, int] = field(  # ConvNeXt-T's, and their blocks
        default_factory=lambda: {"96x56x56": 3, "192x28x28": 3, "384x14x14": 9, "768x7x7": 3}
    )
    batches: tuple[int, int] = (8, 32)
    videos: tuple[str, ...] = ("96x15x56x56", "384x15x14x14")
    tokens: str = "768x196"
    heads: int = 12
    sides: tuple[int, ...] = (32, 64, 128, 256, 512)
    frames: tuple[int, ...] = (8, 16, 32, 64, 128)
    one_matrix: int = 256  # samples up to which one matrix for all axes is tried

    @property
    def few_rounds(self) -> int:
        """For what takes seconds."""
        return max(1, self.rounds // 2)


QUICK = Settings(1, {"4x8x8": 3, "8x3x3": 9}, (2, 3), ("4x3x6x6",), "8x6", 2, (4, 8, 16), (2, 4, 8))


def signal(batch: int, size: str) -> Tensor:
    """A random u of this many images of a size."""
    return torch.randn(batch, *map(int, size.split("x")))


def s4nd(u: Tensor, kernel: str = "s4d", **options) -> S4ND:
    """A layer trained at the size of u."""
    return S4ND(u.shape[1], u.ndim - 2, kernel=kernel, base_size=u.shape[2:], dt_min=0.1, **options)


def convolution(contestant: Callable[[nn.Module, Tensor], Contestant], u: Tensor) -> dict[str, Contestant]:
    """The depthwise convolution of 7 x 7, or 3 x 7 x 7 for videos, in both memory layouts."""
    H, window = u.shape[1], (3, 7, 7)[5 - u.ndim :]
    kind, last = (nn.Conv2d, torch.channels_last) if u.ndim == 4 else (nn.Conv3d, torch.channels_last_3d)
    conv = kind(H, H, window, padding=[n // 2 for n in window], groups=H)
    layouts = {"conv contiguous": torch.contiguous_format, "conv channels_last": last}
    return {
        name: contestant(copy.deepcopy(conv).to(memory_format=layout), u.contiguous(memory_format=layout))
        for name, layout in layouts.items()
    }


def compare(rows: Table, rival: str, weights: dict[str, int] | None = None) -> Table:
    """Times with the rival's best form as one column, then their weighted sum as a row, then ratios to the rival."""
    rows = {name: row | {rival: min(row[k] for k in row if k.startswith(rival))} for name, row in rows.items()}
    if weights is not None:
        columns = next(iter(rows.values()))
        total = {k: sum(blocks * rows[size][k] for size, blocks in weights.items()) for k in columns}
        rows[f"sum of {sum(weights.values())} blocks"] = total
    return {
        name: row | {f"{k}{RATIO}{rival}": row[k] / row[rival] for k in row if not k.startswith(rival)}
        for name, row in rows.items()
    }


def stages(settings: Settings) -> dict[str, Table]:
    """Training step (forward and backward, kernel generation included) in ms. `algorithms`: the convolution alone, with
    given kernels, by each algorithm by name; `auto` is to be near the best."""
    tables = {}
    for batch in settings.batches:
        rows = {}
        for size in settings.stages:
            u = signal(batch, size)
            layers = {kernel: training(s4nd(u, kernel), u) for kernel in ("s4d", "s4")}
            layers["s4d channels_last"] = training(s4nd(u), u.contiguous(memory_format=torch.channels_last))
            rows[size] = measure(layers | convolution(training, u), settings.rounds)
        tables[f"batch {batch}"] = compare(rows, "conv", settings.stages)
    for batch in settings.batches:
        rows = {}
        for size in settings.stages:
            row = measure(algorithms(signal(batch, size), settings.one_matrix), settings.rounds)
            rows[size] = row | {f"auto{RATIO}best": row["auto"] / min(x for k, x in row.items() if k != "auto")}
        tables[f"algorithms, batch {batch}"] = rows
    return tables


def algorithms(u: Tensor, one_matrix: int) -> dict[str, Contestant]:
    """The convolution with kernels that are given, as the layer calls it, by each algorithm."""
    layer = s4nd(u)
    lags = [layer.kernel_lags(axis, n).detach().requires_grad_() for axis, n in enumerate(u.shape[2:])]
    small = math.prod(u.shape[2:]) <= one_matrix
    names = ("auto", *(name for name in EVERYWHERE if small or name != "kronecker"))

    def convolve(name: str, u: Tensor) -> Tensor:
        return separable_conv(u, lags, layer.D, algorithm=name).flatten(1, 2)

    return {name: training(partial(convolve, name), u, parameters=(*lags, layer.D)) for name in names}


def evaluation(settings: Settings) -> dict[str, Table]:
    """Evaluation in ms, in inference mode, kernels kept."""
    batch, rows = settings.batches[0], {}
    for size in settings.stages:
        u = signal(batch, size)
        last, layer = u.contiguous(memory_format=torch.channels_last), s4nd(u)
        layers = {"s4d": inference(layer, u), "s4d channels_last": inference(layer, last)}
        rows[size] = measure(layers | convolution(inference, u), settings.rounds)
    return {f"batch {batch}": compare(rows, "conv", settings.stages)}


def reference(settings: Settings) -> dict[str, Table]:
    """Training step in ms, against the form in which the reference implementation computes the layer: kernels from
    materialised complex powers, FFTs of the padded input and of the outer-product kernel over all axes."""
    batch, rows = settings.batches[0], {}
    for size in settings.stages:
        u = signal(batch, size)
        form = ReferenceForm(s4nd(u, align="edge"))
        rows[size] = measure({"s4d": training(s4nd(u), u), "reference": training(form, u)}, settings.few_rounds)
    return {f"batch {batch}": compare(rows, "reference", settings.stages)}


def video(settings: Settings) -> dict[str, Table]:
    """Training step in ms, three axes, against a 3 x 7 x 7 depthwise convolution."""
    rows = {}
    for size in settings.videos:
        u = signal(1, size)
        layers = {kernel: training(s4nd(u, kernel), u) for kernel in ("s4d", "s4")}
        rows[size] = measure(layers | convolution(training, u), settings.few_rounds)
    return {"batch 1": compare(rows, "conv")}


def attention(settings: Settings) -> dict[str, Table]:
    """Training step in ms on a sequence, against the scaled dot products of attention without its projections."""
    batch = settings.batches[-1]
    u = signal(batch, settings.tokens)
    layers = {"s4d": s4nd(u)} | {f"s4d {name}": s4nd(u, algorithm=name) for name in ("toeplitz", "fft")}
    contestants = {name: training(layer, u) for name, layer in layers.items()}
    q, k, v = torch.randn(3, batch, settings.heads, u.shape[2], u.shape[1] // settings.heads)
    contestants["attention"] = training(F.scaled_dot_product_attention, q, k, v)
    row = measure(contestants, settings.rounds)
    return {f"batch {batch}": compare({settings.tokens: row}, "attention")}


def memory(settings: Settings) -> dict[str, Table]:
    """Peak memory of a training step beyond the input, the gradient of the output and the parameters, in sizes of the
    input; the output, all gradients and what operators use inside count."""
    batch, rows = settings.batches[-1], {}
    for size in settings.stages:
        u = signal(batch, size)
        contestants = {kernel: training(s4nd(u, kernel), u) for kernel in ("s4d", "s4")} | convolution(training, u)
        rows[size] = {name: peak_memory(contestant) / u.nbytes for name, contestant in contestants.items()}
    return {f"batch {batch}": rows}


def growth(settings: Settings) -> dict[str, Table]:
    """Training step of one s4d layer in ms, batch 1, against the size, with the exponent of a power law fitted to it."""
    sweeps = {"8 x n x n": ("8x{n}x{n}", settings.sides), "32 x n x 14 x 14": ("32x{n}x14x14", settings.frames)}
    tables: dict[str, Table] = {}
    for title, (size, sweep) in sweeps.items():
        signals = {str(n): signal(1, size.format(n=n)) for n in sweep}
        row = measure({n: training(s4nd(u), u) for n, u in signals.items()}, settings.rounds)
        logs = [math.log(int(n)) for n in row], [math.log(ms) for ms in row.values()]
        tables[title] = {"ms": row | {"exponent": linear_regression(*logs).slope}}
    return tables


SECTIONS: dict[str, Callable[[Settings], dict[str, Table]]] = {
    "stages": stages,
    "eval": evaluation,
    "reference": reference,
    "video": video,
    "attention": attention,
    "memory": memory,
    "growth": growth,
}


def main() -> None:
    """Measure, print the tables, write the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; all by default")
    parser.add_argument("--rounds", type=int, help="7; the reference form and videos take half as many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("docs/bench_layer"), help="path of the results, no suffix")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, to try the tool itself")
    args = parser.parse_args()
    settings = QUICK if args.quick else Settings()
    settings = replace(settings, rounds=args.rounds or settings.rounds)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = {}
    for name in args.only:
        results[name] = SECTIONS[name](settings)
        target = f" Target: at most {TARGETS[name]:g}." if name in TARGETS else ""
        print(f"\n{name}: {' '.join(SECTIONS[name].__doc__.split())}{target}")
        for title, table in results[name].items():
            print(f"\n{markdown(title, table)}", flush=True)
    machine = {"torch": torch.__version__, "threads": args.threads, "cpus": os.cpu_count()}
    report = machine | {"settings": asdict(settings), "targets": TARGETS, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(results, TARGETS, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
