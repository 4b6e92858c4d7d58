"""The 1-D kernels of a layer's axes, sampled for any grid, by lag: the factors of its tensor products.

Shapes: H channels (d_model), R rank, C outputs per input channel, n samples along an axis, L samples of a one-sided kernel.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from s4nd.conv import lags, regrid
from s4nd.nn.kernels import KERNELS, SSMKernel
from s4nd.nn.kernels.side_by_side import alike, side_by_side
from s4nd.nn.sampling import SampledModule, Sampling, per_axis


class AxisKernels(SampledModule):
    """A kernel module for each axis, which gives (R, C, H, 2n - 1) on an axis of n samples. Arguments marked * are one value
    or one per axis.

    Args:
        kernel: name of KERNELS.
        sampling: what the kernels mean, with the number of axes.
        d_model: H.
        d_state: N.
        rank: R.
        outputs: C.
        scale: of the standard deviation of each axis's kernel at initialisation.
        bidirectional*: True for kernels of both directions.
        init*, n_ssm*: as the kernel takes them.
        options*: by name, what the kernel takes besides; None leaves the choice to it.
    """

    def __init__(
        self,
        kernel: str,
        sampling: Sampling,
        d_model: int,
        d_state: int,
        *,
        rank: int,
        outputs: int,
        scale: float,
        bidirectional: bool | Sequence[bool],
        init: str | Sequence[str] | None,
        n_ssm: int | Sequence[int | None] | None,
        options: Mapping[str, Any],
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self._folds = KERNELS[kernel].folds
        self.sampling, self.ndim, self.rank = sampling, sampling.ndim, rank
        self.bidirectional = per_axis("bidirectional", bidirectional, self.ndim)
        each = zip(
            self.bidirectional,
            per_axis("init", init, self.ndim),
            per_axis("n_ssm", n_ssm, self.ndim),
            _axis_options(kernel, self.ndim, options),
            strict=True,
        )
        kernels = nn.ModuleList(
            KERNELS[kernel](
                d_model,
                d_state,
                (2 if two_sided else 1) * rank * outputs,
                init=axis_init,
                n_ssm=S,
                scale=scale,
                backend=backend,
                device=device,
                dtype=dtype,
                **axis_options,
            )
            for two_sided, axis_init, S, axis_options in each
        )
        self.kernels = cast("Sequence[SSMKernel]", kernels)  # a ModuleList does not say what it is of

    @property
    def sampling(self) -> Sampling:
        """What the kernels were trained on."""
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        if "fold" in sampling.resample and not self._folds:
            raise ValueError(
                "resample='fold' needs the modes of a diagonal kernel (s4d, dss, lru, ema): s4 has none; use 'hold'"
            )
        self._sampling = sampling

    def all_kernel_lags(self, size: Sequence[int]) -> list[Tensor]:
        """The kernels of every axis (R, C, H, 2n - 1), computed now; those of axes that are alike are computed together."""
        if torch.compiler.is_compiling():
            return [self._compute_lags(axis, n) for axis, n in enumerate(size)]
        found: dict[int, Tensor] = {}
        for axis, n in enumerate(size):
            if axis in found:
                continue
            group = [other for other in range(axis, self.ndim) if self._alike(axis, n, other, size[other])]
            if len(group) == 1:
                found[axis] = self._compute_lags(axis, n)
                continue
            taps, rate = self._kernel_taps(axis, n), self.rate(axis, self.sampling.kernel_grid(axis, n))
            parts = side_by_side([self.kernels[i] for i in group], taps, rate, **self._settings(axis, n))
            found |= {i: self._to_lags(part, i, size[i]) for i, part in zip(group, parts, strict=True)}
        return [found[axis] for axis in range(self.ndim)]

    def _alike(self, i: int, n: int, j: int, m: int) -> bool:
        """Whether axis i of n samples and axis j of m ask kernels of one configuration for the same samples."""
        if i == j:
            return True
        grids = self.sampling.kernel_grid(i, n), self.sampling.kernel_grid(j, m)
        same = self._kernel_taps(i, n) == self._kernel_taps(j, m) and self.rate(i, grids[0]) == self.rate(j, grids[1])
        return grids[0] == grids[1] and same and alike(self.kernels[i], self.kernels[j])

    def _compute_lags(self, axis: int, n: int) -> Tensor:
        rate, window = self.rate(axis, self.sampling.kernel_grid(axis, n)), self.l_max[axis]
        settings = self._settings(axis, n)
        if window is None or self.sampling.regrids(axis) or not torch.compiler.is_exporting():
            return self._to_lags(self.kernels[axis](self._kernel_taps(axis, n), rate, **settings), axis, n)
        # A length that follows from rounding would bind the program to sizes like the example's.
        taps = torch.full((), window / rate, device=self.kernels[axis].C.device).round().clamp(min=1)
        k = self.kernels[axis](n, rate, **settings)
        return self._to_lags(k * (torch.arange(n, device=k.device) < taps), axis, n)

    def _settings(self, axis: int, n: int) -> dict[str, Any]:
        """Of the 1-D kernels of an axis of n samples, besides length and rate."""
        base = self.base_size[axis]
        # A program for all sizes must not be bound by a comparison; folded, the trained grid's kernel is what it is anyhow.
        folds = self.sampling.method(axis) == "fold" and (torch.compiler.is_exporting() or n != base)
        return {"bandlimit": self.bandlimit, "align": self.align, "fold": self.taps(axis, base) if folds else None}

    def _kernel_taps(self, axis: int, n: int) -> int:
        """Samples of the one-sided kernels that are computed for an axis of n."""
        if not self.sampling.regrids(axis):
            return self.taps(axis, n)
        return min(self.base_size[axis], self.l_max[axis] or self.base_size[axis])

    def _to_lags(self, k: Tensor, axis: int, n: int) -> Tensor:
        """From the kernels of an axis (channels, H, L), on the grid that they are computed on, to lags on one of n."""
        two_sided = self.bidirectional[axis]
        k = k.unflatten(0, (2 if two_sided else 1, self.rank, -1))  # (directions, R, C, H, L)
        k = lags(k[0], k[1] if two_sided else None, self.sampling.kernel_grid(axis, n), self.align)
        if not self.sampling.regrids(axis):
            return k
        return regrid(k, n, self.sampling.method(axis), align=self.align, causal=not two_sided)


def _axis_options(kernel: str, ndim: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of each axis's kernel, one value or one per axis; those that are None are the kernel's to choose."""
    known = KERNELS[kernel].options()
    for name, value in options.items():
        if value is not None and name not in known:
            raise TypeError(f"kernel={kernel!r} takes no {name}; its options are {known}")
    values = {name: per_axis(name, value, ndim) for name, value in options.items()}
    return [{name: v[i] for name, v in values.items() if v[i] is not None} for i in range(ndim)]
