"""S4: a diagonal plus low-rank state matrix."""

import math
from typing import Any

import torch
from torch import Tensor

from s4nd.nn.kernels.base import COMBINATIONS, Values
from s4nd.nn.kernels.continuous import ContinuousKernel
from s4nd.ops.precision import wide
from s4nd.ssm import dplr_init, dplr_kernel, dplr_step
from s4nd.ssm.hippo import HIPPO, random_dplr
from s4nd.ssm.stepping import Step

CLIP_B = 2.0


class S4Kernel(ContinuousKernel):
    """S4: A = diag(Lambda) - P P^*. See ssm/dplr.py; the discretisation is bilinear, the only one with a DPLR form.

    Args:
        clip_B: the initial B has its imaginary part cut to [-2, 2], as in the reference implementation; False keeps
            B = V^* b, that of the HiPPO operator.
        deterministic: dt is spaced evenly in its logarithm over the heads, and C reads the operator's first coordinate,
            C = scale V^* e_0 in every copy: the temporal initialisation of video models. No meaning for init="random".
            The reference implementation stores this dt where it reads log dt: exp(dt_min) and exp(dt_max) give its steps.
    """

    name = "s4"
    inits = (*HIPPO, "random", *COMBINATIONS)
    default_init = "fout"
    constraints = ("exp", "softplus", "relu")
    discs = ("bilinear",)

    def __init__(self, *args: Any, clip_B: bool = False, deterministic: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if deterministic and self.init == "random":
            raise ValueError("deterministic=True needs an init with a basis V (C = V^* e_0), got init='random'")
        self.clip_B, self.deterministic = clip_B, deterministic
        self.B = self._empty(self.n_ssm, self.n_modes, 2)
        self.P = self._empty(2 if self.init == "legt" else 1, self.n_ssm, self.n_modes, 2)  # (R, S, N/2, 2)
        self._complete()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.deterministic:
            log_dt = torch.linspace(math.log(self.dt_min), math.log(self.dt_max), self.d_model, dtype=torch.float64)
            self.log_dt.copy_(log_dt if self.tie_dt else log_dt[:, None])

    def _set_operator(self, name: str, rows: slice) -> None:
        if name == "random":
            Lambda, P, B = random_dplr(self.d_state, rows.stop - rows.start)
        else:
            Lambda, P, B, V = dplr_init(name, self.d_state)
            P = P[:, None]
            if self.deterministic:
                of_head = self.C.unflatten(1, (-1, self.n_ssm))  # head h = j S + s uses model s
                of_head[:, :, rows] = self.scale * torch.view_as_real(V[0].conj().resolve_conj()).to(self.C)
        self._set_A(Lambda, rows)
        B = torch.view_as_real(B)
        if self.clip_B:
            B = torch.stack([B[..., 0], B[..., 1].clamp(-CLIP_B, CLIP_B)], dim=-1)
        self.B[rows] = B.to(self.B)
        self.P[:, rows] = torch.view_as_real(P).to(self.P)

    def _system(self, p: Values, C: Tensor, rate: float) -> tuple[Tensor, ...]:
        """dt (H,), Lambda, P, B, C. A dt per mode, x' = diag(dt) (A x + B u), is a change of basis by its square root."""
        dt, A, P, B = self.dt(p), self.A(p), self.per_head(p["P"]), self.per_head(p["B"])
        if self.tie_dt:
            return rate * dt[:, 0], A, P, B, C
        root = torch.sqrt(dt)[..., None]
        return torch.full_like(dt[:, 0], rate), dt[..., None] * A, root * P, root * B, root * C

    def _recurrence(self, p: Values, C: Tensor, n: int | None, rate: float, align: str) -> Step:
        return dplr_step(*self._system(p, C, rate), align=align)

    def _kernel(self, p: Values, C: Tensor, L: int, rate: float, align: str) -> Tensor:
        dt, Lambda, P, B, C = self._system(p, C, rate)
        tol = max(torch.finfo(C.dtype).eps, 1e-11)
        dt, Lambda = wide(dt), wide(Lambda)  # phases lose no digits
        return dplr_kernel(dt, Lambda, P, B, C, L, align=align, tol=tol, backend=self.backend)
