"""EMA: real modes, each an exponential moving average."""

from typing import Any

import torch
from torch import Tensor

from s4nd.nn.kernels.base import Values
from s4nd.nn.kernels.continuous import ContinuousKernel
from s4nd.nn.kernels.diagonal import DiagonalKernel
from s4nd.ops import pairs
from s4nd.ssm import DISCRETIZATIONS


class EMAKernel(DiagonalKernel, ContinuousKernel):
    """x' = dt A (x - u) with a real diagonal A < 0: N averages of unit gain, read through a real C.

        x = q x + (1 - q) u,   k[l] = sum_n C_n (1 - q_n) q_n^l,   q = exp(rate dt A)   (under zoh)

    `init` is real: A_n = -(n + 1). The multi-headed EMA of Ma et al., 2022, arXiv:2209.10655, with continuous rates.
    """

    name = "ema"
    inits = ("real",)
    default_init = "real"
    constraints = ("exp", "softplus", "relu")
    real = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._complete()

    def _set_operator(self, name: str, rows: slice) -> None:
        self._set_A(-1.0 - torch.arange(self.n_modes, dtype=torch.float64), rows)

    def readout(self, p: Values) -> Tensor:
        """(C, H, N, 2), the imaginary parts zero."""
        return pairs.pair(p["C"], torch.zeros_like(p["C"]))

    def modes(self, p: Values, L: int | None, rate: float, fraction: float) -> tuple[Tensor, Tensor]:
        A = self.A(p)
        log_a, gain = DISCRETIZATIONS[self.disc](self.dt(p), A, rate, fraction)
        # B = -A; the states hold half of each average, because they are read as 2 Re sum_n C_n x_n.
        return log_a, -0.5 * A[..., :1] * gain
