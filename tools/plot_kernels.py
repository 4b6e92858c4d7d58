"""What a layer is made of, at several resolutions: its basis functions, and its 2-D kernels, by every method to another grid.

    python tools/plot_kernels.py --out docs/kernels.png
    python tools/plot_kernels.py --checkpoint runs/demo/s4nd_iso_tiny/last.safetensors --out kernels.png

Above: Re exp(t A_n) of modes of one head, the dots where the trained grid samples it, the line where a finer grid does. A mode
above the Nyquist frequency of the trained grid looks like a slow one there (dotted) and comes out fast on a finer grid: what
was learnt with it was the alias. Below: 2-D kernels on the trained grid and on finer and coarser ones: the continuous ones
with all modes and without those above `bandlimit`, and those of the trained grid held, dilated and, of kernels that have modes
(not s4), folded. The first two as figures 9.1 and 9.5 of Nguyen et al., 2022, arXiv:2210.06583.
"""

import argparse
import copy
from pathlib import Path

import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from s4nd import S4ND
from s4nd.conv.dense import outer_product
from s4nd.nn.resolution import layers


def initial_layer(size: int) -> S4ND:
    """Freshly drawn, with steps that put some of the modes above the Nyquist frequency."""
    torch.manual_seed(0)
    return S4ND(8, kernel="s4d", d_state=16, dt_min=0.1, dt_max=0.4, base_size=size)


def learnt_layer(checkpoint: Path, index: int) -> S4ND:
    """Number `index` of the S4ND layers of a model that `s4nd train` saved."""
    from s4nd.train.checkpoint import load_model

    found = list(layers(load_model(checkpoint)[0]))
    if not -len(found) <= index < len(found):
        raise ValueError(f"{checkpoint} has {len(found)} S4ND layers, got --layer {index}")
    return found[index]


@torch.no_grad()
def kernel_image(layer: S4ND, factor: float, head: int, bandlimit: float | None, method: str) -> Tensor:
    """The 2-D kernel of a head on a grid `factor` times as fine, per unit of area: (2 n_1 - 1, 2 n_2 - 1)."""
    limited = copy.deepcopy(layer)
    limited.bandlimit, limited.resample = bandlimit, method
    sizes = [max(1, round(n * factor)) for n in layer.base_size]
    return outer_product([limited.kernel_lags(axis, n)[:, :, [head]] for axis, n in enumerate(sizes)])[0, 0] * factor**2


@torch.no_grad()
def draw_modes(figure: SubFigure, layer: S4ND, head: int, count: int, steps: int) -> None:
    """Modes of the first axis, slowest to fastest; time in trained steps."""
    kernel = layer.kernels[0]
    A, dt = torch.view_as_complex(kernel.A().contiguous())[head], kernel.dt()[head]
    cycles = A.imag.abs() * dt / (2 * torch.pi)
    order = torch.argsort(cycles)[torch.linspace(0, len(A) - 1, count).round().long()]
    t, dots = torch.linspace(0, steps, 40 * steps + 1), torch.arange(steps + 1)
    for axes, n in zip(figure.subplots(1, count, sharey=True, squeeze=False)[0], order, strict=True):
        alias = A[n] * dt - 2j * torch.pi * torch.round(A[n].imag * dt / (2 * torch.pi))
        axes.plot(t, torch.exp(A[n] * dt * t).real, linewidth=0.8, color="tab:blue", label="continuous")
        axes.plot(t, torch.exp(alias * t).real, ":", linewidth=1.2, color="tab:red", label="alias")
        axes.plot(dots, torch.exp(A[n] * dt * dots).real, "o", markersize=3, color="black", label="trained grid")
        axes.set_title(f"{cycles[n]:.2f} cycles a sample", fontsize=9, color="tab:red" if cycles[n] > 0.5 else "black")
        axes.set_xlabel("trained steps", fontsize=8)
    figure.suptitle("Basis functions of one head (Nyquist: 0.5 cycles a sample)", fontsize=10)
    figure.axes[0].legend(fontsize=7, loc="lower left", frameon=False)


def draw_images(figure: SubFigure, layer: S4ND, heads: list[int], factors: list[float], limit: float) -> None:
    """A row per head and method; a column per resolution, one colour scale per row."""
    methods = {"all modes": (None, "continuous"), f"bandlimit {limit:g}": (limit, "continuous")}
    methods |= {"held": (None, "hold"), "dilated": (None, "dilate")}
    if all(kernel.folds for kernel in layer.kernels):
        methods |= {"folded": (None, "fold")}
    grid = figure.subplots(len(methods) * len(heads), len(factors), squeeze=False)
    for row, (head, name) in zip(grid, [(h, name) for h in heads for name in methods], strict=True):
        top = kernel_image(layer, 1.0, head, *methods[name]).abs().max().item()
        for axes, factor in zip(row, factors, strict=True):
            image = kernel_image(layer, factor, head, *methods[name])
            axes.imshow(image.numpy(), cmap="RdBu", vmin=-top, vmax=top, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if axes in grid[0]:
                sizes = " x ".join(str(max(1, round(n * factor))) for n in layer.base_size)
                axes.set_title(f"{sizes} grid{' (trained)' if factor == 1 else ''}", fontsize=9)
        row[0].set_ylabel(f"head {head}\n{name}", fontsize=8)
    figure.suptitle(
        "2-D kernels by lag, lag 0 in the middle, per unit of area (blue positive, red negative)", fontsize=10
    )


def main() -> None:
    """Draw and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="safetensors of `s4nd train`; a fresh layer without it")
    parser.add_argument("--layer", type=int, default=0, help="which S4ND layer of the checkpoint")
    parser.add_argument("--size", type=int, default=12, help="trained grid of the fresh layer")
    parser.add_argument("--heads", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.5, 1, 2, 4], help="resolutions, the trained one 1"
    )
    parser.add_argument("--bandlimit", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("docs/kernels.png"))
    args = parser.parse_args()
    layer = initial_layer(args.size) if args.checkpoint is None else learnt_layer(args.checkpoint, args.layer)
    if layer.ndim != 2 or None in layer.base_size or max(args.heads) >= layer.d_model:
        parser.error(f"needs a layer with 2 axes and a base_size, and heads below d_model, got {layer}, {args.heads}")
    figure = Figure(figsize=(8.5, 2.2 + 8.5 * len(args.heads)), dpi=72, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2.2, 8.5 * len(args.heads)))
    draw_modes(above, layer, args.heads[0], 4, 12)
    draw_images(below, layer, args.heads, args.factors, args.bandlimit)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
