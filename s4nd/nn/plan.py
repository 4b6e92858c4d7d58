"""A layer at one grid: buffers only, no state-space code, and the one place that decides in which form it is computed.

    y[b, c, h, m] = sum_r sum_w T_r^(1)[m_1, w_1] ... T_r^(D)[m_D, w_D] u[b, h, w] + D[c, h] u[b, h, m]

T^(i) is the Toeplitz matrix of axis i, with the average pooling after the layer, if there is one, folded in (P T). Axis by
axis it is applied as a depthwise convolution or, where that has very many taps, between two Fourier transforms: this can be
exported. In evaluation grids that are not small are computed as in training, from kernels that are kept.

Shapes: B batch, H channels, C outputs per input channel (all outputs of the dense layer), R rank, n_i samples along axis i, m_i
along axis i after pooling, G = H C R inner channels, in this order.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from s4nd.conv import separable_conv
from s4nd.conv.pooling import average_pool
from s4nd.nn.along import AxisConv, AxisSpectrum, order

if TYPE_CHECKING:
    from s4nd.nn.s4nd import S4ND

# Multiplications per sample up to which convolutions of all axes win on a CPU over what `separable_conv` takes, by the layout
# of the signal, and for a single axis. On two cores, batch 8, ms of convolutions against the others: 768 x 7 x 7 2.1 and 2.3
# (1.3 and 2.4 channels-last), 384 x 14 x 14 3.4 and 2.8 (2.4 and 3.5), 192 x 28 x 28 13.4 and 4.2 (7.4 and 6.7). A single axis
# of 64 samples takes half as long as by FFT, one of 196 2.6 times.
CONVOLUTION_WORK = {"contiguous": 40, "channels last": 88, "one axis": 192}
# Taps up to which an axis is exported as a convolution; beyond, a matrix per channel would be large and a convolution slow
# everywhere: two transforms that all channels share take its place.
EXPORTED_TAPS = 257


class Kernels(NamedTuple):
    """A layer's kernels at one grid.

    Attributes:
        lags: D tensors (R, C, H, 2n_i - 1), C all outputs in the layer's order.
        skip: D (C, H), or None.
        taps: per axis, lags of as many and more are zero.
        pool: per axis.
        depthwise: False for the dense layer, which sums over H.
    """

    lags: list[Tensor]
    skip: Tensor | None
    taps: tuple[int, ...]
    pool: tuple[int, ...]
    depthwise: bool

    @property
    def size(self) -> list[int]:
        return [(k.shape[-1] + 1) // 2 for k in self.lags]


class Plan(nn.Module):
    """(B, H, n_1, ..., n_D) -> (B, C H or C, n_1 // p_1, ..., n_D // p_D) at the sizes n_i it was made for.

    Args:
        size: (n_1, ..., n_D).
        form: what computes it; None for a plan that its first input completes.
    """

    if TYPE_CHECKING:  # TorchScript would take annotations for attributes, and the comments of mypy for types
        form: Any

    def __init__(self, size: Sequence[int], form: nn.Module | None):
        super().__init__()
        self.size, self.form = list(size), form
        self._source: tuple = ()  # in a tuple: its parameters are not the plan's

    @classmethod
    def completed_by_input(cls, layer: "S4ND", size: Sequence[int] | None) -> "Plan":
        """A plan of `layer` that takes the grid of its first input, whatever it is.

        Scripted, traced or exported before that it is of `size`, if that is known.
        """
        plan = cls(size or [], layer.plan(size).form if size else None)
        plan._source = (layer,)
        return plan

    def forward(self, u: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self._complete(u)
        return self.form(check_grid(u, self.size))

    @torch.jit.unused
    def _complete(self, u: Tensor) -> None:
        if not self._source:
            return
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or not isinstance(u, Tensor):
            self._check_complete()
            return
        (layer,) = self._source
        if list(u.shape[2:]) != self.size:
            plan = layer.plan(u.shape[2:])
            self.size, self.form = plan.size, plan.form
        self._source = ()

    def _check_complete(self) -> None:
        if self.form is None:
            raise ValueError("this S4ND layer was fused for no grid yet: run the fused model once at the one to deploy")

    def __prepare_scriptable__(self) -> nn.Module:
        self._check_complete()
        plan = Plan(self.size, self.form)
        return plan.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Plan":
        for layer in self._source:
            layer._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"size={self.size}"


@torch.fx.wrap  # a leaf of fx graphs, which have no branches
def check_grid(u: Tensor, size: list[int]) -> Tensor:
    """u, if it has the axes `size`. Export makes it a constraint, and a trace an expansion to these very sizes, which fails for
    others (but for an axis of one sample)."""
    if torch.jit.is_tracing():
        return u.expand([-1, -1] + size)  # noqa: RUF005  TorchScript unpacks no lists
    if list(u.shape[2:]) != size:
        raise ValueError(f"this S4ND layer was fused at the grid {size}, not {list(u.shape[2:])}: fuse it there")
    return u


def make_plan(kernels: Kernels, dtype: torch.dtype, *, layout: str | None = None) -> Plan:
    """The plan of these kernels.

    Args:
        dtype: of its buffers.
        layout: of the signals, "contiguous" or "channels last", for the form that is quickest for them at hand; None for one
            that can be scripted and exported.
    """
    if layout is not None and not _prefers_convolutions(kernels, layout):
        return Plan(kernels.size, KeptKernels(kernels))
    along = [AxisConv if layout is not None or 2 * n - 1 <= EXPORTED_TAPS else AxisSpectrum for n in kernels.taps]
    return Plan(kernels.size, AxisByAxis(kernels, along, dtype))


def _prefers_convolutions(kernels: Kernels, layout: str) -> bool:
    limit = CONVOLUTION_WORK["one axis" if len(kernels.lags) == 1 else layout]
    return kernels.lags[0].device.type == "cpu" and _convolution_work(kernels) <= limit


def _convolution_work(kernels: Kernels) -> float:
    """Multiplications for a sample and a head, axis by axis from the last one, the pooling included."""
    work, left = 0.0, 1.0
    for taps, p in zip(reversed(kernels.taps), reversed(kernels.pool), strict=True):
        left /= p
        work += (2 * taps + p - 2) * left
    return work


class KeptKernels(nn.Module):
    """All axes as in training, with kernels that are given: for the device at hand, which `separable_conv` knows."""

    skip: Tensor | None

    def __init__(self, kernels: Kernels):
        super().__init__()
        self.pool, self.depthwise, self.ndim = list(kernels.pool), kernels.depthwise, len(kernels.lags)
        for axis, k in enumerate(kernels.lags):
            self.register_buffer(f"lags{axis}", k)
        self.register_buffer("skip", None if kernels.skip is None else kernels.skip.detach().clone())

    def forward(self, u: Tensor) -> Tensor:
        # Signals that are channels-last are computed contiguous: two copies cost less than strided blocks.
        kernels = [getattr(self, f"lags{axis}") for axis in range(self.ndim)]
        y = separable_conv(u.contiguous(), kernels, self.skip, pool=self.pool if self.depthwise else None)
        y = y.flatten(1, 2) if self.depthwise else average_pool(y.sum(2), self.pool)
        return y if u.is_contiguous() else y.movedim(1, -1).contiguous().movedim(-1, 1)


class AxisByAxis(nn.Module):
    """One step per axis, the last axis first, then the sum over R, or over H too, and the skip."""

    if TYPE_CHECKING:  # as above
        skip: Tensor | None

    def __init__(self, kernels: Kernels, along: Sequence[type[AxisConv] | type[AxisSpectrum]], dtype: torch.dtype):
        super().__init__()
        R, C, H, _ = kernels.lags[0].shape
        self.pool, self.depthwise = list(kernels.pool), kernels.depthwise
        self.groups = [H, C, R]
        D = len(kernels.lags)
        self.channels_last = AxisConv in along
        self.to_last, self.from_last = order(D + 2, 1, D + 1), order(D + 2, D + 1, 1)
        sizes, steps = kernels.size, []
        for axis in reversed(range(len(sizes))):
            k = kernels.lags[axis].permute(2, 1, 0, 3).flatten(0, 2)  # (G, 2n - 1)
            groups = H if axis == len(sizes) - 1 else H * C * R
            steps.append(along[axis](k, groups, sizes, axis, kernels.taps[axis], kernels.pool[axis]))
            sizes = [*sizes[:axis], sizes[axis] // kernels.pool[axis], *sizes[axis + 1 :]]
        self.steps = nn.Sequential(*steps)
        skip = kernels.skip
        self.register_buffer("skip", None if skip is None else skip.reshape(C, H, *([1] * len(sizes))).clone())
        self.to(dtype)

    def forward(self, u: Tensor) -> Tensor:
        H, C, R = self.groups[0], self.groups[1], self.groups[2]
        if self.channels_last and len(self.pool) == 2:
            u = u.contiguous(memory_format=torch.channels_last)
        elif self.channels_last:
            u = u.permute(self.to_last).contiguous().permute(self.from_last)
        y = self.steps(u)  # (B, G, *axes)
        if not self.depthwise:
            return y.unflatten(1, [H, C, R]).sum([1, 3])
        if R > 1:
            y = y.unflatten(1, [H * C, R]).sum(2)
        if C > 1:
            y = y.unflatten(1, [H, C]).transpose(1, 2).flatten(1, 2)
        skip = self.skip
        if skip is None:
            return y
        v = average_pool(u, self.pool)
        if C == 1:
            return torch.addcmul(y, skip[0].to(y.dtype), v.to(y.dtype))
        y = torch.addcmul(y.unflatten(1, [C, H]), skip.to(y.dtype), v.to(y.dtype).unsqueeze(1))
        return y.flatten(1, 2)
