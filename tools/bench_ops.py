"""Time and memory of the structured products, by every backend, and of long 1-D layers that rest on them.

    python tools/bench_ops.py
    python tools/bench_ops.py --only layers --lengths 16384 65536 --rounds 5 --out runs/bench_ops

float32, on the CPU. Prints Markdown tables, and writes OUT.json and OUT.png. A run is a forward and a backward pass. All
contestants of a row take turns in one process; times are medians over the rounds. Memory is the most that one run holds beyond
what there was before it, results and gradients included, as torch's allocator counts it (KeOps' own is not in it). "definition"
writes the matrix of all modes at all samples out; where it would hold more than a few GiB it is left out. A backend that cannot
run here is named with its reason.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from bench_measure import Contestant, measure, peak_memory
from bench_report import RATIO, Table, figure, markdown
from matplotlib.figure import Figure
from torch import Tensor

from s4nd import S4ND
from s4nd.ops import BACKENDS, BackendError, cauchy, dispatch, vandermonde
from s4nd.ops.cauchy import cauchy_definition
from s4nd.ops.vandermonde import vandermonde_definition

# What is aimed at, at most: s4's time and memory in s4d's, and memory of the products in the definition's.
TARGETS = {"s4": 4.0, "memory": 0.05}
SECTIONS = ("vandermonde", "cauchy", "layers")
MOST = 2**30  # elements of the definition's matrix


@dataclass(frozen=True)
class Settings:
    """What is measured: J responses of H heads with N / 2 poles each, and layers of H channels with N states."""

    rounds: int = 5
    lengths: tuple[int, ...] = (64, 256, 1024, 4096, 16_384, 65_536)
    H: int = 64
    N: int = 64
    J: int = 2


QUICK = Settings(1, (16, 64), 4, 8, 2)


def products(settings: Settings, name: str) -> tuple[Table, Table, dict[str, str]]:
    """Milliseconds and MiB of one product, a row for each length, and the backends that cannot run."""
    times, memory, refused = {}, {}, {}
    for L in settings.lengths:
        contestants = {"definition": product(settings, name, L, None)} if fits(settings, L) else {}
        for backend in (b for b in BACKENDS if b != "auto" and b not in refused):
            contestant = product(settings, name, L, backend)
            try:
                contestant.run()  # compiles
            except BackendError as error:
                refused[backend] = str(error)
            else:
                contestants[backend] = contestant
        add_row(times, memory, f"L {L}", contestants, settings.rounds, "definition")
    return times, memory, refused


def fits(settings: Settings, L: int) -> bool:
    return settings.H * settings.N * L <= MOST // 16


def product(settings: Settings, name: str, L: int, backend: str | None) -> Contestant:
    """One pass of a product and back; by its definition if there is no backend."""
    torch.manual_seed(0)
    J, H, N = settings.J, settings.H, settings.N // 2
    w = torch.randn(J, H, N, 2, requires_grad=True)
    poles = torch.stack([-torch.rand(H, N, dtype=torch.float64) / L, torch.randn(H, N, dtype=torch.float64)], dim=-1)
    if name == "vandermonde":
        x = poles.requires_grad_()
        form = vandermonde_definition if backend is None else partial(vandermonde, backend=backend)
        inputs = w, x, L
    else:
        x, angle = poles.float().requires_grad_(), torch.linspace(0, 3, L)
        form = cauchy_definition if backend is None else partial(cauchy, backend=backend)
        inputs = w, x, torch.stack([1 + angle, angle], dim=-1)

    def run() -> None:
        form(*inputs).square().sum().backward()

    return Contestant(run, (w, x))


def layers(settings: Settings) -> tuple[Table, Table]:
    """Milliseconds and MiB of a training step of a 1-D layer of one signal, a row for each length."""
    times, memory = {}, {}
    for L in settings.lengths:
        contestants = {}
        for kernel in ("s4d", "s4"):
            layer = S4ND(settings.H, 1, d_state=settings.N, kernel=kernel, base_size=L)
            contestants[kernel] = step(layer, torch.randn(1, settings.H, L))
        add_row(times, memory, f"L {L}", contestants, settings.rounds, "s4d")
    return times, memory


def step(layer: S4ND, u: Tensor) -> Contestant:
    def run() -> None:
        layer(u).square().mean().backward()

    return Contestant(run, tuple(layer.parameters()))


def add_row(times: Table, memory: Table, row: str, contestants: dict[str, Contestant], rounds: int, rival: str) -> None:
    """Of all contestants, with their ratios to the rival."""
    times[row] = measure(contestants, rounds)
    memory[row] = {name: peak_memory(contestant) / 2**20 for name, contestant in contestants.items()}
    for table in (times, memory):
        if rival in table[row]:
            ratios = {f"{k}{RATIO}{rival}": x / table[row][rival] for k, x in table[row].items() if k != rival}
            table[row] |= ratios


def draw(results: dict[str, dict[str, Table]], path: Path) -> None:
    """Time and memory against length, a row of panels for each section."""
    sheet = Figure(figsize=(10, 3.4 * len(results)), dpi=80, layout="constrained")
    grid = sheet.subplots(len(results), 2, squeeze=False)
    for panels, (section, tables) in zip(grid, results.items(), strict=True):
        for axes, (unit, table) in zip(panels, tables.items(), strict=True):
            for name in dict.fromkeys(k for row in table.values() for k in row if RATIO not in k):
                points = {int(row.split()[1]): x[name] for row, x in table.items() if name in x}
                axes.loglog(list(points), list(points.values()), "o-", label=name, markersize=3)
            axes.set_title(f"{section}, {unit}", fontsize=10)
            axes.set_xlabel("samples", fontsize=8)
            axes.legend(fontsize=7, frameon=False)
    sheet.savefig(path, pil_kwargs={"optimize": True})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: whether it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_ops"))
    args = parser.parse_args(argv)
    given = {k: v for k, v in (("rounds", args.rounds), ("lengths", args.lengths and tuple(args.lengths))) if v}
    settings = Settings(**asdict(QUICK if args.quick else Settings()) | given)
    if min(*settings.lengths, settings.rounds) < 1:
        parser.error(f"lengths and rounds must be positive, got {settings.lengths} and {settings.rounds}")
    results, refused = {}, {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; auto: {dispatch.choose(torch.device('cpu'))}")
    for section in args.only:
        if section == "layers":
            times, memory = layers(settings)
        else:
            times, memory, why = products(settings, section)
            refused |= why
        results[section] = {"ms": times, "MiB": memory}
        for unit, table in results[section].items():
            print(f"\n{markdown(f'{section}, {unit}', table)}", flush=True)
    for backend, reason in refused.items():
        print(f"\n{backend}: {reason}")
    judge(results)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "settings": asdict(settings)}
    args.out.with_suffix(".json").write_text(json.dumps(record | {"refused": refused, "results": results}, indent=1))
    draw(results, args.out.with_suffix(".png"))


def judge(results: dict[str, dict[str, Table]]) -> None:
    """The targets beside what was reached, at the longest length that has both."""
    print()
    for section, tables in results.items():
        rival, name, target = ("s4d", "s4", TARGETS["s4"]) if section == "layers" else ("definition", "torch", None)
        for unit, table in tables.items():
            goal = target or (TARGETS["memory"] if unit == "MiB" else None)
            rows = [(row, x[f"{name}{RATIO}{rival}"]) for row, x in table.items() if f"{name}{RATIO}{rival}" in x]
            if goal and rows:
                row, ratio = rows[-1]
                print(f"{section}, {row}: {unit} of {name} / {rival} {figure(ratio)}, aimed at {goal} at most")


if __name__ == "__main__":
    main()
