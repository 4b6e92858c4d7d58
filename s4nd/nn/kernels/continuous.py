"""Kernels of a continuous state-space model x' = dt (A x + B u): the step dt, and Re A under a constraint.

Shapes: H heads, S state-space models, N states (N/2 kept, one of each conjugate pair; all N where the modes are real).
Complex parameters are real pairs (..., 2).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.nn.kernels.base import SSMKernel, Values
from s4nd.ssm import DISCRETIZATIONS

# Outside these ranges parameters are used as if they lay at the nearer end, so that no checkpoint gives inf or NaN.
DT_RANGE = (1e-6, 1e2)
DAMPING_RANGE = (1e-8, 1e4)  # of -Re A; with A_constraint="none" the upper end bounds |Re A|
# A mode with Re A > 0 grows at most by e in a step of the present grid, and by e^20 over the axis.
GROWTH = 20.0
# Where an initial operator has Re A = 0 (FouT, LegT).
INITIAL_DAMPING = 1e-4


class _Constraint(NamedTuple):
    """How -Re A comes from the parameter p of this name: p -> -Re A, and back."""

    parameter: str
    damping: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


CONSTRAINTS = {
    "exp": _Constraint("log_A_real", torch.exp, torch.log),
    "softplus": _Constraint("A_real", F.softplus, lambda x: x + torch.log(-torch.expm1(-x))),
    "relu": _Constraint("A_real", torch.relu, lambda x: x),
    "none": _Constraint("A_real", torch.neg, torch.neg),
}


class ContinuousKernel(SSMKernel):
    """dt and A, discretised. At a sampling rate the step is rate * dt.

    Args:
        dt_min, dt_max: dt is drawn log-uniformly between them, in units where the trained grid has step 1.
        tie_dt: True for one dt per head, False for one per mode.
        A_constraint: Re A = -exp(p), -softplus(p), -relu(p) or p ("none") of the parameter p.
        disc: discretisation, see ssm/discretize.py; None for the kernel's default, the first it knows.
    """

    constraints: tuple[str, ...] = tuple(CONSTRAINTS)
    discs: tuple[str, ...] = tuple(DISCRETIZATIONS)

    def __init__(
        self,
        *args: Any,
        dt_min: float = 0.01,
        dt_max: float = 1.0,
        tie_dt: bool = True,
        A_constraint: str | None = None,
        disc: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if not DT_RANGE[0] <= dt_min <= dt_max <= DT_RANGE[1]:
            raise ValueError(f"need {DT_RANGE[0]} <= dt_min <= dt_max <= {DT_RANGE[1]}, got {dt_min} and {dt_max}")
        self.dt_min, self.dt_max, self.tie_dt = dt_min, dt_max, tie_dt
        self.A_constraint = self.constraints[0] if A_constraint is None else A_constraint
        self._check_choice("A_constraint", self.A_constraint, self.constraints)
        self.disc = self.discs[0] if disc is None else disc
        self._check_choice("disc", self.disc, self.discs)
        self.needs_length = self.needs_length or self.A_constraint == "none"
        self.log_dt = self._empty(self.d_model, *(() if tie_dt else (self.n_modes,)))
        self.register_parameter(CONSTRAINTS[self.A_constraint].parameter, self._empty(self.n_ssm, self.n_modes))
        if not self.real:
            self.A_imag = self._empty(self.n_ssm, self.n_modes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw dt and C, and set A and B to their initial operators."""
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        super().reset_parameters()

    def _set_A(self, A: Tensor, rows: slice) -> None:
        """A (N/2,) or (rows, N/2), complex."""
        parameter, _, inverse = CONSTRAINTS[self.A_constraint]
        getattr(self, parameter)[rows] = inverse((-A.real).clamp(min=INITIAL_DAMPING)).to(self.C)
        if not self.real:
            self.A_imag[rows] = A.imag.to(self.A_imag)

    def dt(self, p: Values | None = None) -> Tensor:
        """(H, 1) step on the trained grid; (H, N/2) if each mode has its own."""
        dt = torch.exp((p or self.values())["log_dt"].clamp(math.log(DT_RANGE[0]), math.log(DT_RANGE[1])))
        return dt[:, None] if self.tie_dt else dt

    def A(self, p: Values | None = None, L: int | None = 1, rate: float = 1.0) -> Tensor:
        """(H, N/2, 2) state matrix, or its diagonal part; a growing mode's growth is limited on an axis of L samples."""
        p, (least, most) = p or self.values(), DAMPING_RANGE
        if self.A_constraint == "exp":  # before the exponential, which would overflow
            damping = torch.exp(p["log_A_real"].clamp(math.log(least), math.log(most)))
        else:
            least = -most if self.A_constraint == "none" else least
            damping = CONSTRAINTS[self.A_constraint].damping(p["A_real"]).clamp(least, most)
        imag = torch.zeros_like(damping) if self.real else p["A_imag"]
        A = self.per_head(torch.stack([-damping, imag], dim=-1))
        if self.A_constraint == "none":
            growth = self._growth(self._length(L), rate) / self.dt(p)
            A = torch.stack([torch.minimum(A[..., 0], growth), A[..., 1]], dim=-1)
        return A

    def _growth(self, L: int, rate: float) -> float:
        """The largest dt Re A. Counted in trained steps if these are the longer ones: `async` takes gains over them."""
        return min(1 / rate, GROWTH / max(1.0, L * rate))

    def phase(self, p: Values) -> Tensor:
        return self.dt(p) * self.A(p)[..., 1].abs()

    @torch.no_grad()
    def rescale(self, rate: float) -> None:
        if self.disc == "async" and rate != 1:
            raise ValueError(f"disc='async' keeps its gain at the trained step: it cannot be rescaled, got rate={rate}")
        self.log_dt += math.log(rate)  # type: ignore[misc]  # in place a parameter stays one
