"""What the benchmarks measure with: contestants, their time and their memory, and the layer as the reference computes it.

Shapes: B batch, H channels, N states (N/2 kept), n_i samples along axis i.
"""

import os
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from s4nd import S4ND
from s4nd.nn.kernels import S4DKernel

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports every start and stop on stderr


class Contestant(NamedTuple):
    """Something to run, and the leaves whose gradients are dropped before each run."""

    run: Callable[[], object]
    leaves: tuple[Tensor, ...] = ()

    def forget(self) -> None:
        """What an optimizer's zero_grad(set_to_none=True) does before a step."""
        for leaf in self.leaves:
            leaf.grad = None


def training(function: Callable[..., Tensor], *inputs: Tensor, parameters: Iterable[Tensor] = ()) -> Contestant:
    """A forward and a backward pass, with gradients of the inputs and of the parameters (a module's own, if it is one).

    The gradient of the output has the shape and the memory layout of the first input.
    """
    grad, leaves = torch.randn_like(inputs[0]), tuple(x.detach().requires_grad_() for x in inputs)
    if isinstance(function, nn.Module):
        parameters = function.parameters()
    return Contestant(lambda: function(*leaves).backward(grad), (*leaves, *parameters))


def inference(layer: nn.Module, u: Tensor) -> Contestant:
    """A forward pass in evaluation mode; what the layer caches is there after the first."""
    layer.eval()
    return Contestant(torch.inference_mode()(lambda: layer(u)))


def measure(contestants: dict[str, Contestant], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, over rounds in which all take turns, after one that is not counted.

    A drift of the machine's speed meets all alike, and ratios of the medians are ratios under the same conditions.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, contestant in contestants.items():
            contestant.forget()
            start = time.perf_counter()
            contestant.run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values[1:]) for name, values in times.items()}


def peak_memory(contestant: Contestant) -> int:
    """The most bytes that one run holds at a time, beyond what there was before it.

    Summed over every allocation and release that torch's CPU allocator reports, so what an operator uses inside counts too,
    and the same run gives the same number. Outputs and gradients count, since a run makes them.
    """
    contestant.run()
    contestant.forget()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        contestant.run()
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class ReferenceForm(nn.Module):
    """An S4D layer in the form in which the reference implementation (state-spaces/s4) computes it: for comparison only.

        y = irfftn(rfftn(K) rfftn(u)) + D u   on a circular grid (2 n_1, ..., 2 n_D),   K = k^(1) x ... x k^(D)

    The kernel of each axis is a sum over a complex tensor of powers, (H, N/2, n); the outer product of the kernels and the
    padded input are transformed over all axes at once. Written afresh from the published formulas.

    Args:
        layer: whose parameters it shares: kernel="s4d", disc="zoh", rank 1, one channel, two-sided. With align="edge" both
            compute the same.
    """

    def __init__(self, layer: S4ND):
        super().__init__()
        self.layer = layer

    def forward(self, u: Tensor) -> Tensor:
        """(B, H, n_1, ..., n_D) -> the same."""
        size = u.shape[2:]
        axes, grid = tuple(range(2, u.ndim)), [2 * n for n in size]
        K = u.new_ones(())
        for axis, n in enumerate(size):
            k = two_sided(self.layer.kernels[axis], n, self.layer.rate(axis, n))  # (H, 2n)
            K = K[..., None] * k.view(len(k), *([1] * axis), -1)
        spectrum = torch.fft.rfftn(u, s=grid, dim=axes) * torch.fft.rfftn(K[None], dim=axes)
        y = torch.fft.irfftn(spectrum, s=grid, dim=axes)[(..., *(slice(n) for n in size))]
        return y + self.layer.D.view(-1, *([1] * len(size))) * u


def two_sided(kernel: S4DKernel, n: int, rate: float) -> Tensor:
    """k[l] = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n), l >= 0, on a circle of 2n lags; lag -1 - l from the
    second C: (H, 2n)."""
    A, B, C = (torch.view_as_complex(x.contiguous()) for x in (kernel.A(), kernel.per_head(kernel.B), kernel.C))
    dtA = rate * kernel.dt() * A  # (H, N/2)
    powers = torch.exp(dtA[..., None] * torch.arange(n, dtype=dtA.real.dtype, device=dtA.device))  # (H, N/2, n)
    forward, reverse = 2 * torch.einsum("chn,hnl->chl", C * B * torch.expm1(dtA) / A, powers).real
    return F.pad(forward, (0, n)) + F.pad(reverse.flip(-1), (n, 0))
