"""One kernel under every discretisation, at three samplings.

    python tools/plot_discretisations.py --out docs/discretisations.png

Each dot is a tap: what an input sample adds to the answer that much later. The grey line is what a sample of the trained step
would add if the kernel were constant over it, dt k(t). zoh and bilinear weigh a sample by the step that it fills, so their taps
grow with the rate; dirac and async take a sample for an event, which weighs the same at every rate (dirac's events have unit
mass, drawn here times dt).
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from s4nd.ops import pairs
from s4nd.ssm import DISCRETIZATIONS, diagonal_init, diagonal_kernel

STYLES = ("o", "x", "+", "v", "^", "s")


def system(d_state: int) -> tuple[Tensor, Tensor]:
    """S4D-Lin, read out so that all modes start in phase: A (1, N/2, 2), C (1, 1, N/2, 2)."""
    A, _ = diagonal_init("lin", d_state)
    C = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, len(A), 2) / d_state
    return torch.view_as_real(A)[None], C


def taps(disc: str, dt: float, rate: float, L: int, d_state: int) -> Tensor:
    """(L,) the kernel on a grid whose step is `rate` trained ones."""
    A, C = system(d_state)
    log_a, gain = DISCRETIZATIONS[disc](torch.full((1, 1), dt, dtype=torch.float64), A, rate, 1.0)
    return diagonal_kernel(log_a, gain, C, L)[0, 0]


def continuous(dt: float, steps: Tensor, d_state: int) -> Tensor:
    """dt k(t) = dt 2 Re sum C exp(t A), t = dt * steps."""
    A, C = system(d_state)
    return dt * 2 * pairs.mul(C[0, 0, :, None], pairs.exp(dt * steps[:, None] * A[0, :, None]))[..., 0].sum(0)


def draw(rates: list[float], dt: float, length: int, d_state: int) -> Figure:
    """A panel per rate; time in trained steps."""
    figure = Figure(figsize=(3.4 * len(rates), 3.4), dpi=110, layout="constrained")
    line = torch.linspace(0, length, 400, dtype=torch.float64)
    for axes, rate in zip(figure.subplots(1, len(rates), sharey=True, squeeze=False)[0], rates, strict=True):
        axes.plot(line, continuous(dt, line, d_state), color="0.75", linewidth=3, label="dt k(t)")
        L = max(1, round(length / rate))
        for disc, style in zip(DISCRETIZATIONS, STYLES, strict=False):
            k = taps(disc, dt, rate, L, d_state) * (dt if disc == "dirac" else 1)
            label = disc + (" x dt" if disc == "dirac" else "")
            hollow = {"markerfacecolor": "none"} if style in "ov^s" else {}
            axes.plot(
                rate * torch.arange(L), k, style, markersize=6, linestyle=":", linewidth=0.8, label=label, **hollow
            )
        grid = "the trained grid" if rate == 1 else f"{'coarser' if rate > 1 else 'finer'} by {max(rate, 1 / rate):g}"
        axes.set(title=f"rate {rate:g}: {grid}", xlabel="lag (trained steps)")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("tap (what one sample adds)")
    figure.axes[-1].legend(frameon=False)
    return figure


def main() -> None:
    """Draw and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--dt", type=float, default=0.25, help="trained step")
    parser.add_argument("--length", type=int, default=16, help="in trained steps")
    parser.add_argument("--d-state", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs/discretisations.png"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(args.rates, args.dt, args.length, args.d_state).savefig(args.out)


if __name__ == "__main__":
    main()
