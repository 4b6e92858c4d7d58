"""Time of the S4ND layer against a 7 x 7 depthwise convolution, at the four stage shapes of ConvNeXt-T.

    python tools/bench_layer.py --batch 8 --out bench_layer.json

Forward and backward in float32, kernel generation included; the convolution in the better of its two memory layouts.
All contestants take turns in one process, so that a drift of the machine's speed meets them alike; medians are printed
in milliseconds, and as ratios to the convolution. The sum weighs the stages with ConvNeXt-T's 3, 3, 9 and 3 blocks.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from s4nd import S4ND

STAGES = {"96x56x56": 3, "192x28x28": 3, "384x14x14": 9, "768x7x7": 3}  # shape: blocks
KERNELS = ("s4d", "s4")


def step(layer: nn.Module, u: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
    """A forward and a backward pass, with gradients of the input and of the parameters."""

    def run() -> None:
        layer(u).backward(grad)

    return run


def contestants(shape: str, batch: int) -> dict[str, Callable[[], None]]:
    """What is compared at one shape, by name."""
    H, *size = (int(n) for n in shape.split("x"))
    u, grad = torch.randn(batch, H, *size, requires_grad=True), torch.randn(batch, H, *size)
    steps = {k: step(S4ND(H, kernel=k, base_size=size, dt_min=0.1), u, grad) for k in KERNELS}
    for name, layout in (("conv NCHW", torch.contiguous_format), ("conv NHWC", torch.channels_last)):
        conv = nn.Conv2d(H, H, 7, padding=3, groups=H).to(memory_format=layout)
        laid = u.detach().to(memory_format=layout).requires_grad_()
        steps[name] = step(conv, laid, grad.to(memory_format=layout))
    return steps


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, over rounds in which all take turns, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measure, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures, sums = {}, dict.fromkeys((*KERNELS, "conv"), 0.0)
    print(
        f"{'ms, batch ' + str(args.batch):<16}"
        + "".join(f"{name:>10}" for name in sums)
        + "".join(f"{name + '/conv':>10}" for name in KERNELS)
    )
    for shape, blocks in STAGES.items():
        figures[shape] = measure(contestants(shape, args.batch), args.rounds)
        row = figures[shape] | {"conv": min(figures[shape]["conv NCHW"], figures[shape]["conv NHWC"])}
        for name in sums:
            sums[name] += blocks * row[name]
        print(line(shape, row))
    print(line("sum of 18 blocks", sums))
    if args.out is not None:
        args.out.write_text(
            json.dumps({"batch": args.batch, "threads": args.threads, "ms": figures, "sum": sums}, indent=1)
        )


def line(name: str, row: dict[str, float]) -> str:
    """A row of the table: milliseconds, then ratios."""
    cells = [f"{row[key]:10.1f}" for key in (*KERNELS, "conv")]
    return f"{name:<16}" + "".join(cells) + "".join(f"{row[key] / row['conv']:10.2f}" for key in KERNELS)


if __name__ == "__main__":
    main()
