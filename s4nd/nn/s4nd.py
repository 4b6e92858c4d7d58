"""The S4ND layer: a global depthwise convolution whose kernel is a sum of tensor products of 1-D state-space kernels.

    y[c H + h] = sum_r (k_r^(1) x ... x k_r^(D))_{c,h} * u[h] + D[c, h] u[h]

Each k^(i) is a continuous function, sampled at the step of the present grid: a layer that was trained at `base_size` takes
any other size as the same signal sampled differently.

Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces", 2022, arXiv:2210.06583.
Shapes: B batch, H channels (d_model), C output channels per input channel, R rank, n_i samples along axis i.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.conv import ALGORITHMS, lags, separable_conv
from s4nd.nn.kernels import KERNELS
from s4nd.ops import BACKENDS
from s4nd.ssm.align import check_align


class S4ND(nn.Module):
    """(B, H, n_1, ..., n_D) -> (B, H * channels, n_1, ..., n_D), for any sizes n_i.

    Arguments marked * are one value or one per axis.

    Args:
        d_model: H.
        ndim: D, number of axes.
        d_state: N, state size of each 1-D kernel, even.
        kernel: "s4" (diagonal plus low rank) or "s4d" (diagonal).
        init*: initial state matrix: legs, legt, fout, hippo (half legs, half fout) for s4; lin, inv for s4d.
        rank: R, terms of the sum of tensor products.
        channels: C, outputs per input channel; output c H + h is number c of channel h.
        out_channels: None for the depthwise layer; O for the dense one, (B, H, ...) -> (B, O * channels, ...), which has a
            kernel for each pair of input and output channel and no D.
        bidirectional*: True for a two-sided axis, False for a causal one.
        base_size*: grid on which the layer is trained; an axis of n samples is then read at rate base_size / n. None keeps
            the sampling: a longer axis extends.
        l_max*: support of the 1-D kernels in samples of the trained grid; None for the whole axis.
        bandlimit: modes above this fraction of the Nyquist frequency, of the coarser of the trained and the present grid,
            are left out; None keeps all.
        dt_min*, dt_max*: range of the initial steps.
        n_ssm*: number of independent (A, B), divides d_model; None for d_model.
        disc: discretisation: zoh (default) or bilinear for s4d, bilinear for s4.
        align: "centre": a sample stands for its pixel's centre; "edge": for its first edge, as in the reference
            implementation. See ssm/align.py.
        algorithm: of the convolution along each axis, see conv/separable.py.
        backend: of the kernels' contraction, see ops/dispatch.py.
    """

    def __init__(
        self,
        d_model: int,
        ndim: int = 2,
        *,
        d_state: int = 64,
        kernel: str = "s4",
        init: str | Sequence[str] | None = None,
        rank: int = 1,
        channels: int = 1,
        out_channels: int | None = None,
        bidirectional: bool | Sequence[bool] = True,
        base_size: int | Sequence[int | None] | None = None,
        l_max: int | Sequence[int | None] | None = None,
        bandlimit: float | None = None,
        dt_min: float | Sequence[float] = 0.01,
        dt_max: float | Sequence[float] = 1.0,
        n_ssm: int | Sequence[int | None] | None = 1,
        disc: str | None = None,
        align: str = "centre",
        algorithm: str = "auto",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        _check_choice("kernel", kernel, KERNELS)
        _check_choice("algorithm", algorithm, ("auto", *ALGORITHMS))
        _check_choice("backend", backend, BACKENDS)
        check_align(align)
        for name, value in dict(d_model=d_model, ndim=ndim, rank=rank, channels=channels).items():
            _check_positive(name, value)
        if out_channels is not None:
            _check_positive("out_channels", out_channels)
        self.d_model, self.ndim, self.d_state = d_model, ndim, d_state
        self.rank, self.channels, self.out_channels = rank, channels, out_channels
        self.bidirectional = per_axis("bidirectional", bidirectional, ndim)
        self.base_size, self.l_max = per_axis("base_size", base_size, ndim), per_axis("l_max", l_max, ndim)
        for name in ("base_size", "l_max"):
            for size in getattr(self, name):
                if size is not None:
                    _check_positive(name, size)
        self.bandlimit, self.align, self.algorithm = bandlimit, align, algorithm
        options = [per_axis(n, v, ndim) for n, v in dict(n_ssm=n_ssm, dt_min=dt_min, dt_max=dt_max).items()]
        inits = per_axis("init", KERNELS[kernel].default_init if init is None else init, ndim)
        self.kernels = nn.ModuleList(
            KERNELS[kernel](
                d_model,
                d_state,
                (2 if two_sided else 1) * rank * (out_channels or 1) * channels,
                init=axis_init,
                n_ssm=S,
                dt_min=lo,
                dt_max=hi,
                # A product of D kernels, summed over R terms (and H inputs if dense), has the variance of one kernel's.
                scale=(rank * (d_model if out_channels else 1)) ** (-0.5 / ndim),
                disc=disc,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            for two_sided, axis_init, S, lo, hi in zip(self.bidirectional, inits, *options, strict=True)
        )
        self.D = nn.Parameter(torch.empty(channels, d_model, device=device, dtype=dtype)) if not out_channels else None
        if self.D is not None and not self.D.is_meta:
            nn.init.normal_(self.D)
        self._cache: dict[tuple[int, int], tuple[tuple, Tensor]] = {}

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after construction on the meta device and `to_empty`."""
        for kernel in self.kernels:
            kernel.reset_parameters()
        if self.D is not None:
            nn.init.normal_(self.D)

    def rate(self, axis: int, n: int) -> float:
        """Step of a grid of n samples along the axis, in steps of the trained grid."""
        return 1.0 if self.base_size[axis] is None else self.base_size[axis] / n

    def kernel_lags(self, axis: int, n: int) -> Tensor:
        """The 1-D kernels of an axis of n samples, by lag: (R, C, H, 2n - 1), C the outputs per input channel.

        In evaluation they are computed once: until the parameters, their device or dtype or the layer's settings change.
        (A change of a parameter through `.data` leaves no trace; call `train()` after it.)
        """
        params = list(self.kernels[axis].parameters())
        if self.training or torch.compiler.is_compiling() or _needs_grad(params):
            return self._compute_lags(axis, n)
        state = (
            self.bandlimit,
            self.base_size,
            *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in params),
        )
        if self._cache.get((axis, n), (None,))[0] != state:
            self._cache[axis, n] = state, self._compute_lags(axis, n)
        return self._cache[axis, n][1]

    def _compute_lags(self, axis: int, n: int) -> Tensor:
        rate, window = self.rate(axis, n), self.l_max[axis]
        L = n if window is None else min(n, max(1, round(window / rate)))
        k = self.kernels[axis](L, rate, bandlimit=self.bandlimit, align=self.align)
        k = k.unflatten(0, (2 if self.bidirectional[axis] else 1, self.rank, -1))  # (directions, R, C, H, L)
        return lags(k[0], k[1] if self.bidirectional[axis] else None, n, self.align)

    def forward(self, u: Tensor) -> Tensor:
        """u (B, H, n_1, ..., n_D), floating point -> (B, H * channels or O * channels, n_1, ..., n_D)."""
        if u.ndim != self.ndim + 2 or u.shape[1] != self.d_model or 0 in u.shape[2:]:
            axes = ", ".join(f"n_{i + 1}" for i in range(self.ndim))
            raise ValueError(f"S4ND needs u (B, d_model={self.d_model}, {axes}), no axis empty, got {tuple(u.shape)}")
        if not u.is_floating_point():
            raise ValueError(f"S4ND needs a floating-point u, got {u.dtype}")
        kernels = [self.kernel_lags(axis, n) for axis, n in enumerate(u.shape[2:])]
        y = separable_conv(u, kernels, algorithm=self.algorithm)  # (B, C, H, *axes)
        if self.out_channels is not None:
            y = y.sum(2).unflatten(1, (self.out_channels, self.channels))
            return y.transpose(1, 2).flatten(1, 2)
        D = self.D.reshape(self.channels, self.d_model, *([1] * self.ndim))
        return torch.addcmul(y, D, u[:, None]).flatten(1, 2)

    def train(self, mode: bool = True) -> "S4ND":
        self._cache.clear()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._cache.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_cache": {}}

    def extra_repr(self) -> str:
        names = ["d_model", "ndim", "d_state", "rank", "channels", "out_channels", "bidirectional", "base_size"]
        return ", ".join(f"{n}={getattr(self, n)}" for n in [*names, "l_max", "bandlimit", "align", "algorithm"])


def per_axis(name: str, value: Any, ndim: int) -> tuple:
    """One value for all axes, or a sequence with one entry per axis, as a tuple of length ndim."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * ndim
    if len(value) != ndim:
        raise ValueError(f"{name} must be one value or one per axis (ndim={ndim}), got {value!r}")
    return tuple(value)


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _check_choice(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {sorted(known)}, got {value!r}")


def _needs_grad(params: list[nn.Parameter]) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in params)
