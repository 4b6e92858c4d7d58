"""The S4ND layer: a global depthwise convolution whose kernel is a sum of tensor products of 1-D state-space kernels.

    y[c H + h] = sum_r (k_r^(1) x ... x k_r^(D))_{c,h} * u[h] + D[c, h] u[h]

Each k^(i) is a continuous function, sampled at the step of the present grid: a layer that was trained at `base_size` takes
any other size as the same signal sampled differently.

Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces", 2022, arXiv:2210.06583.
Shapes: B batch, H channels (d_model), C output channels per input channel, R rank, n_i samples along axis i.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.conv import ALGORITHMS, separable_conv
from s4nd.conv.pooling import average_pool
from s4nd.nn.axis_kernels import AxisKernels
from s4nd.nn.kept import KeepingModule, Kept, Numbers, numbers_of
from s4nd.nn.kernels import KERNELS
from s4nd.nn.plan import Kernels, Plan, make_plan
from s4nd.nn.recurrent import step
from s4nd.nn.sampling import Sampling, per_axis, positive
from s4nd.ops import BACKENDS
from s4nd.ops.precision import autocast_dtype, without_autocast

NOT_SCRIPTABLE = (
    "S4ND cannot be scripted or traced, since its kernels follow the grid; fuse it at one grid first: "
    "timm.utils.reparameterize_model(model) or layer.fuse(size)"
)


class S4ND(AxisKernels, KeepingModule):
    """(B, H, n_1, ..., n_D) -> (B, H * channels, n_1, ..., n_D), for any sizes n_i; with pooling n_i // pool_i.

    Arguments marked * are one value or one per axis.

    Args:
        d_model: H.
        ndim: D, number of axes.
        d_state: N, state size of each 1-D kernel, even.
        kernel: "s4" (diagonal plus low rank), "s4d" (diagonal), "dss" (diagonal, normalised over the axis), "lru" (discrete
            at the trained grid) or "ema" (real modes). See nn/kernels.
        init*: initial state matrix: legs, legt, fout, hippo (half legs, half fout) or random for s4; lin, inv, legs, real or
            random for s4d and dss; ring for lru; real for ema. None for the kernel's default: fout, lin, legs, ring, real.
        rank: R, terms of the sum of tensor products.
        channels: C, outputs per input channel; output c H + h is number c of channel h.
        out_channels: None for the depthwise layer; O for the dense one, (B, H, ...) -> (B, O * channels, ...), which has a
            kernel for each pair of input and output channel and no D.
        bidirectional*: True for a two-sided axis, False for a causal one.
        base_size*: grid on which the layer is trained; an axis of n samples is then read at rate base_size / n. None keeps
            the sampling: a longer axis extends.
        l_max*: support of the 1-D kernels in samples of the trained grid; None for the whole axis.
        pool*: window and stride of an average pooling of the output, as torch's AvgPool; 1 for none.
        bandlimit: modes above this fraction of the Nyquist frequency, of the coarser of the trained and the present grid,
            are left out; None keeps all.
        dt_min*, dt_max*: range of the initial steps, None for 0.01 and 1; not for lru, which has no dt.
        n_ssm*: number of independent (A, B), divides d_model; None for d_model.
        disc*: discretisation: zoh (default), bilinear, dirac or async for s4d and ema, bilinear for s4, zoh for dss.
        resample*: the kernel of another grid than the trained one is "continuous", sampled there; or the trained grid's with
            every lag held over its pixel, "hold", to which only means over trained pixels count (conv/held.py), or with every
            lag where it was, "dilate" (conv/dilated.py); or of fractional powers of the trained grid's poles, "fold"
            (ssm/fold.py; not for s4).
        align: "centre": a sample stands for its pixel's centre; "edge": for its first edge, as in the reference
            implementation. See ssm/align.py.
        algorithm: of the convolution along each axis, see conv/separable.py.
        backend: of the kernels' contraction, see ops/dispatch.py.
        **kernel_options*: what the kernel takes besides: tie_dt, A_constraint (all with a dt), clip_B, deterministic (s4),
            r_min, r_max, max_phase (lru). See nn/kernels.
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
        pool: int | Sequence[int] = 1,
        bandlimit: float | None = None,
        dt_min: float | Sequence[float] | None = None,
        dt_max: float | Sequence[float] | None = None,
        n_ssm: int | Sequence[int | None] | None = 1,
        disc: str | Sequence[str] | None = None,
        resample: str | Sequence[str] = "continuous",
        align: str = "centre",
        algorithm: str = "auto",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kernel_options: Any,
    ):
        _check_choice("kernel", kernel, KERNELS)
        _check_choice("algorithm", algorithm, ("auto", *ALGORITHMS))
        _check_choice("backend", backend, BACKENDS)
        ndim, d_model, rank, channels = (
            positive(name, value)
            for name, value in dict(ndim=ndim, d_model=d_model, rank=rank, channels=channels).items()
        )
        out_channels = None if out_channels is None else positive("out_channels", out_channels)
        super().__init__(
            kernel,
            Sampling(ndim, base_size, l_max, bandlimit, align, resample),
            d_model,
            d_state,
            rank=rank,
            outputs=(out_channels or 1) * channels,
            # A product of D kernels, summed over R terms (and H inputs if dense), has the variance of one kernel's.
            scale=(rank * (d_model if out_channels else 1)) ** (-0.5 / ndim),
            bidirectional=bidirectional,
            init=init,
            n_ssm=n_ssm,
            options=dict(dt_min=dt_min, dt_max=dt_max, disc=disc, **kernel_options),
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.d_model, self.d_state, self.channels, self.out_channels = d_model, d_state, channels, out_channels
        self.algorithm = algorithm
        self.pool = tuple(positive("pool", p) for p in per_axis("pool", pool, ndim))
        self.D = nn.Parameter(torch.empty(channels, d_model, device=device, dtype=dtype)) if not out_channels else None
        if self.D is not None and not self.D.is_meta:
            nn.init.normal_(self.D)
        self.kept = Kept()
        self.kept.belong_to(self)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after construction on the meta device and `to_empty`."""
        for kernel in self.kernels:
            kernel.reset_parameters()
        if self.D is not None:
            nn.init.normal_(self.D)

    def kernel_lags(self, axis: int, n: int) -> Tensor:
        """The 1-D kernels of an axis of n samples, by lag: (R, C, H, 2n - 1), C the outputs per input channel.

        In evaluation they are computed once, for as long as the layer's parameters and settings are the same.
        """
        return self.kept_or_computed(("lags", axis, n), lambda: self._compute_lags(axis, n))

    def _numbers(self) -> Numbers | None:
        """All that the kernels and the skip follow from."""
        shape = self.d_model, self.rank, self.channels, self.out_channels, self.bidirectional, self.pool
        if getattr(self, "_is_replica", False):  # of DataParallel: its parameters are plain attributes
            return None
        return numbers_of((self.sampling, shape), self.kernels, [] if self.D is None else [self.D])

    def forward(self, u: Tensor) -> Tensor:
        """u (B, H, n_1, ..., n_D), floating point -> (B, H * channels or O * channels, n_1 // p_1, ..., n_D // p_D)."""
        if torch.jit.is_tracing():
            raise RuntimeError(NOT_SCRIPTABLE)
        if u.ndim != self.ndim + 2 or u.shape[1] != self.d_model or 0 in u.shape[2:]:
            axes = ", ".join(f"n_{i + 1}" for i in range(self.ndim))
            raise ValueError(f"S4ND needs u (B, d_model={self.d_model}, {axes}), no axis empty, got {tuple(u.shape)}")
        if not u.is_floating_point():
            raise ValueError(f"S4ND needs a floating-point u, got {u.dtype}")
        _check_windows(u.shape[2:], self.pool)
        if self._is_compiled_evaluation(u):
            from s4nd.nn.compiled import evaluate  # to define an operator takes time that others need not spend

            outputs = self.channels * (self.out_channels or self.d_model)
            shape = [u.shape[0], outputs, *(n // p for n, p in zip(u.shape[2:], self.pool, strict=True))]
            return evaluate(self._rounded(u), list(self.parameters()), self.kept.number, shape)
        size = tuple(u.shape[2:])
        if not self._is_still() or self.algorithm != "auto":
            return self._convolve(u, self.all_kernel_lags(size))
        if torch.is_grad_enabled() and u.requires_grad:  # the forms of plans are slow backwards
            return self._convolve(u, [self.kernel_lags(axis, n) for axis, n in enumerate(size)])
        return self.evaluate(self._rounded(u))

    def _convolve(self, u: Tensor, kernels: list[Tensor]) -> Tensor:
        if self.out_channels is None:
            return self._outputs(separable_conv(u, kernels, self.D, algorithm=self.algorithm, pool=self.pool))
        # Fewer samples are pooled after the sum over channels.
        return average_pool(self._outputs(separable_conv(u, kernels, algorithm=self.algorithm)), list(self.pool))

    def _is_compiled_evaluation(self, u: Tensor) -> bool:
        compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting() and u.device.type == "cpu"
        return compiled and self.algorithm == "auto" and not (self.training or torch.is_grad_enabled())

    def _rounded(self, u: Tensor) -> Tensor:
        """u in autocast's dtype, which leaves float64 alone."""
        return u if u.dtype == torch.float64 else u.to(autocast_dtype(u.device.type) or u.dtype)

    def evaluate(self, u: Tensor) -> Tensor:
        """`forward` without gradients by the plan of u's grid, in the dtype and the memory layout of u."""
        size, dtype = tuple(u.shape[2:]), u.dtype
        self.kept.latest = size
        with without_autocast(u.device.type):
            layout = "contiguous" if u.is_contiguous() else "channels last"
            plan = self.kept_or_computed(("plan", size, dtype, layout), lambda: self._plan(size, dtype, layout))
            y = plan(u)
        return y.contiguous() if u.is_contiguous() else y

    def _plan(self, size: Sequence[int], dtype: torch.dtype, layout: str | None = None) -> Plan:
        kernels, skip = self.all_kernel_lags(size), self.D
        if self.out_channels is not None:  # in the order of the layer's outputs
            kernels = [
                k.unflatten(1, (self.out_channels, self.channels)).transpose(1, 2).flatten(1, 2) for k in kernels
            ]
        # With align="edge" tap j of the reverse kernel has lag -(1 + j): one lag further.
        further = [int(self.align == "edge" and two_sided) for two_sided in self.bidirectional]
        taps = tuple(min(n, self.taps(axis, n) + further[axis]) for axis, n in enumerate(size))
        made_of = Kernels(kernels, skip, taps, self.pool, depthwise=self.out_channels is None)
        return make_plan(made_of, dtype, layout=layout)

    @torch.inference_mode(False)  # the buffers of a plan outlive it
    @torch.no_grad()
    def plan(self, size: int | Sequence[int]) -> Plan:
        """The layer at one grid as plain convolutions and products, for inference and export; see nn/plan.py.

        Args:
            size: of the grid, one value or one per axis.
        """
        grid = [positive("size", n) for n in per_axis("size", size, self.ndim)]
        _check_windows(grid, self.pool)
        return self._plan(grid, (self.kernels[0].C if self.D is None else self.D).dtype)

    def fuse(self, size: int | Sequence[int] | None = None) -> Plan:
        """`plan(size)`; without a size, as `timm.utils.reparameterize_model` calls it, a plan that takes the grid of its first
        input. Scripted or exported before that, it is of the grid of the layer's last evaluation, or else of `base_size`."""
        if size is not None:
            return self.plan(size)
        grid = self.kept.latest or self.base_size
        # A copy: a fused layer does not follow this one.
        return Plan.completed_by_input(copy.deepcopy(self), None if None in grid else grid)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(NOT_SCRIPTABLE)

    def step(self, u: Tensor, state: Tensor | None = None, *, n: int | None = None) -> tuple[Tensor, Tensor]:
        """One sample along the first causal axis: what `forward` gives at that instant of the whole signal.

        Args:
            u: (B, H, *axes) without the causal axis, i.e. (B, H) for ndim=1.
            state: what the step before returned; None starts from silence. A plain tensor (B, H, *axes, N), 2N for EMA, which
                may be detached, moved or indexed by image; float64, whatever u is (see ssm/stepping.py).
            n: samples of the whole causal axis, needed where the kernel depends on it: with base_size, l_max or DSS. A held
                kernel is a recurrence on the trained grid alone.

        Returns:
            y (B, H * channels or O * channels, *axes // pool), and the state for the next step.

        In evaluation without gradients the step is discretised once; else at every call, so that parameters get gradients.
        """
        return step(self, u, state, n)

    def _outputs(self, y: Tensor) -> Tensor:
        """(B, C, H, *axes) -> (B, H * channels, *axes), or the sum over H (B, O * channels, *axes) of the dense layer."""
        if self.out_channels is None:
            return y[:, 0] if self.channels == 1 else y.flatten(1, 2)
        y = y.sum(2, dtype=y.dtype)  # left to choose, autocast on CUDA takes float32
        return y.unflatten(1, (self.out_channels, self.channels)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        names = ["d_model", "ndim", "d_state", "rank", "channels", "out_channels", "bidirectional", "base_size"]
        return ", ".join(
            f"{n}={getattr(self, n)}" for n in [*names, "l_max", "pool", "bandlimit", "resample", "align", "algorithm"]
        )


def _check_windows(size: Sequence[int], pool: tuple[int, ...]) -> None:
    if any(n < p for n, p in zip(size, pool, strict=True)):
        raise ValueError(f"no axis may be shorter than its pooling window, {pool=}, got the grid {tuple(size)}")


def _check_choice(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {sorted(known)}, got {value!r}")
