"""How much a layer's answer changes with the sampling: pixel centres beside pixel edges, and every method to another grid.

    python tools/plot_resolution.py --out docs/resolution.png

The layer is trained, so to speak, at `size` x `size`, and meets the same smooth signal (waves of at most 2 cycles along each
axis, zero at the border) on a grid 0.5, 2, 3 or 4 times as fine: rate 2, 1/2, 1/3, 1/4. Its continuous kernel is the same for
all sizes and holds no frequency above a grid's Nyquist frequency. The difference is RMS, relative to the answer's, where
samples of both grids sit: on shared pixel edges, or at centres (between two fine centres, at their mean, whose own error
happens to offset part of the layer's at 2x). It falls with the step for edges, and with its square for centres: continuous,
held (off by a larger constant: they see the signal averaged over a trained pixel), dilated and folded alike.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from s4nd import S4ND, set_base_size
from s4nd.nn.kernels import KERNELS

COLOURS = {
    ("edge", "continuous"): "tab:orange",
    ("centre", "continuous"): "tab:blue",
    ("centre", "hold"): "tab:green",
    ("centre", "dilate"): "tab:purple",
    ("centre", "fold"): "tab:red",
}
LABELS = {"continuous": "", "hold": ", held", "dilate": ", dilated", "fold": ", folded"}
MARKERS = "vo^sD"
EXACT = 1e-9  # percent: rounding alone


def signal(n: int, align: str) -> Tensor:
    """Four smooth pictures on n x n samples: (1, 4, n, n) float64."""
    x = (torch.arange(n, dtype=torch.float64) + (0.5 if align == "centre" else 0.0)) / n
    waves = [torch.sin(torch.pi * x) ** 2 * torch.exp(2j * torch.pi * k * x) for k in (0, 1)]
    return torch.stack([(a[:, None] * b).real for a in waves for b in waves])[None]


def shared(y: Tensor, times: int, align: str) -> Tensor:
    """The answer on a grid `times` as fine, where the coarse samples sit."""
    for axis in (2, 3):
        first = [0] if align == "edge" else [(times - 1) // 2, times // 2]
        y = sum(y.index_select(axis, torch.arange(k, y.shape[axis], times)) for k in first) / len(first)
    return y


@torch.no_grad()
def difference(layer: S4ND, size: int, factor: float) -> float:
    """Relative RMS difference between the answers at size x size and on a grid `factor` times as fine."""
    coarse, times = (size, round(factor)) if factor > 1 else (round(size * factor), round(1 / factor))
    y, fine = (layer(signal(n, layer.align)) for n in (coarse, times * coarse))
    return ((shared(fine, times, layer.align) - y).norm() / y.norm()).item()


def layer_at(size: int, align: str, kernel: str, method: str = "continuous") -> S4ND:
    """The same continuous layer for every size: drawn for 32 x 32 and sampled there; other grids are reached by this method."""
    torch.manual_seed(0)
    layer = S4ND(4, d_state=8, kernel=kernel, dt_min=0.02, dt_max=0.08, base_size=32, align=align, dtype=torch.float64)
    torch.nn.init.zeros_(layer.D)
    set_base_size(layer, size, rescale=True)
    layer.resample = method
    return layer


def draw(sizes: list[int], factors: list[float], kernel: str) -> Figure:
    """Difference against base size, a line per factor, alignment and method."""
    figure = Figure(figsize=(7.6, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (align, method), colour in COLOURS.items():
        if method == "fold" and not KERNELS[kernel].folds:
            continue
        layers = {size: layer_at(size, align, kernel, method) for size in sizes}
        for factor, marker in zip(factors, MARKERS, strict=False):
            percent = [100 * difference(layer, size, factor) for size, layer in layers.items()]
            style = ":" if method == "fold" else "-"  # it lies on the continuous kernel where no mode aliases
            label = f"{align}{LABELS[method]}, read at {factor:g}x"
            if max(percent) < EXACT:
                axes.plot([], [], marker=marker, color=colour, markersize=5, linewidth=1, label=f"{label}: exact")
            else:
                axes.loglog(
                    sizes, percent, marker=marker, color=colour, linestyle=style, markersize=5, linewidth=1, label=label
                )
            print(label, *(f"{size}: {value:.3f} %" for size, value in zip(sizes, percent, strict=True)), sep="  ")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(
        xlabel="trained grid (samples per side)",
        ylabel="change of the answer, relative RMS (%)",
        title=f"One {kernel} layer, one smooth signal, another sampling",
    )
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    return figure


def main() -> None:
    """Draw and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128], help="trained grids, even")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.5, 2, 3, 4], help="0.5, or whole numbers above 1"
    )
    parser.add_argument("--kernel", default="s4d")
    parser.add_argument("--out", type=Path, default=Path("docs/resolution.png"))
    args = parser.parse_args()
    if any(factor != 0.5 and (factor < 2 or factor % 1) for factor in args.factors) or any(n % 2 for n in args.sizes):
        parser.error(f"need factors 0.5 or 2, 3, ... and even sizes, got {args.factors} and {args.sizes}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(args.sizes, args.factors, args.kernel).savefig(args.out)


if __name__ == "__main__":
    main()
