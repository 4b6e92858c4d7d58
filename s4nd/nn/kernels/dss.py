"""DSS: a diagonal state matrix whose modes are normalised over the axis, so that their real part is free."""

from typing import Any

import torch
from torch import Tensor

from s4nd.nn.kernels.base import Values
from s4nd.nn.kernels.continuous import ContinuousKernel
from s4nd.nn.kernels.diagonal import DiagonalKernel
from s4nd.ops import pairs
from s4nd.ssm import DISCRETIZATIONS
from s4nd.ssm.hippo import DIAGONAL, diagonal_rows

GROWTH = 60.0  # of a mode over the axis, at most e^60: half of float32's range
VANISHING = 1e-3


class DSSKernel(DiagonalKernel, ContinuousKernel):
    """DSS-softmax (Gupta et al., 2022, arXiv:2203.14343, Proposition 1 (b)), on an axis of L samples:

        k[l] = 2 Re sum_n C_n / A_n  softmax_l(l rate dt A_n)[l],   0 <= l < L

    The sum in the softmax is (e^(L x) - 1) / (e^x - 1) with x = rate dt A, so this is S4D under zoh with
    B_n = 1 / (e^(L x_n) - 1). A growing mode, Re A > 0, has its weight at the far end of the axis; it grows by at most e^60
    over it. Where e^(L x) comes within 1e-3 of 1 (the sum vanishes there, or A does), B_n is conj(e^(L x) - 1) 1e6 instead:
    the paper divides by zero.
    """

    name = "dss"
    inits = tuple(DIAGONAL)
    default_init = "legs"
    constraints = ("none", "exp", "softplus", "relu")
    discs = ("zoh",)
    needs_length = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._complete()

    def _set_operator(self, name: str, rows: slice) -> None:
        self._set_A(diagonal_rows(name, self.d_state, rows.stop - rows.start)[0], rows)

    def _growth(self, L: int, rate: float) -> float:
        return GROWTH / (L * rate)

    def modes(self, p: Values, L: int | None, rate: float, fraction: float) -> tuple[Tensor, Tensor]:
        log_a, gain = DISCRETIZATIONS[self.disc](self.dt(p), self.A(p, L, rate), rate, fraction)
        over_axis = log_a * (self._length(L) / fraction)
        shrunk = torch.exp(-torch.relu(over_axis[..., :1]))  # by the largest of the softmax's terms
        norm = pairs.expm1(over_axis) * shrunk
        inverse = pairs.conj(norm) / norm.square().sum(-1, keepdim=True).clamp(min=VANISHING**2)
        return log_a, pairs.mul(gain, inverse * shrunk)
