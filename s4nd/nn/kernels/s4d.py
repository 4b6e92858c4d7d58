"""S4D: a diagonal state matrix, discretised."""

from typing import Any

import torch
from torch import Tensor

from s4nd.nn.kernels.base import Values
from s4nd.nn.kernels.continuous import ContinuousKernel
from s4nd.nn.kernels.diagonal import DiagonalKernel
from s4nd.ops import pairs
from s4nd.ssm import DISCRETIZATIONS
from s4nd.ssm.hippo import DIAGONAL, diagonal_rows


class S4DKernel(DiagonalKernel, ContinuousKernel):
    """S4D (Gu et al., 2022, arXiv:2206.11893): x' = dt (A x + B u) with a diagonal A."""

    name = "s4d"
    inits = tuple(DIAGONAL)
    default_init = "lin"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.B = self._empty(self.n_ssm, self.n_modes, 2)
        self._complete()

    def _set_operator(self, name: str, rows: slice) -> None:
        A, B = diagonal_rows(name, self.d_state, rows.stop - rows.start)
        self._set_A(A, rows)
        self.B[rows] = torch.view_as_real(B).to(self.B)

    def modes(self, p: Values, L: int | None, rate: float, fraction: float) -> tuple[Tensor, Tensor]:
        log_a, gain = DISCRETIZATIONS[self.disc](self.dt(p), self.A(p, L, rate), rate, fraction)
        return log_a, pairs.mul(gain, self.per_head(p["B"]))
