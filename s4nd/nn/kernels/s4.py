"""S4: a diagonal plus low-rank state matrix."""

import torch
from torch import Tensor, nn

from s4nd.nn.kernels.base import COMBINATIONS, SSMKernel
from s4nd.ssm import dplr_init, dplr_kernel
from s4nd.ssm.hippo import HIPPO


class S4Kernel(SSMKernel):
    """S4: A = diag(Lambda) - P P^*. See ssm/dplr.py; the discretisation is bilinear."""

    inits = (*HIPPO, *COMBINATIONS)
    default_init = "fout"

    def __init__(self, *args, disc: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if disc not in (None, "bilinear"):
            raise ValueError(f"disc of kernel='s4' must be bilinear, the only one with a DPLR form, got {disc!r}")
        R = 2 if self.init == "legt" else 1
        self.P = nn.Parameter(torch.empty_like(self.B).expand(R, *self.B.shape).clone())  # (R, S, N/2, 2)
        self._mark()
        if not self.C.is_meta:
            self.reset_parameters()

    def _set_operator(self, name: str, rows: slice) -> None:
        Lambda, P, B, _ = dplr_init(name, 2 * self.B.shape[1])
        self._set_poles(Lambda, B, rows)
        self.P[:, rows] = torch.view_as_real(P)[:, None].to(self.P)

    def _kernel(self, L: int, rate: float, C: Tensor, align: str) -> Tensor:
        tensors = (self.dt()[:, 0] * rate, self.A(), self.per_head(self.P), self.per_head(self.B), C)
        tol = torch.finfo(C.dtype).eps
        # Nodes in float64 need neither the oversampling nor the care that float32 does; Apple's GPUs have no float64.
        if C.device.type != "mps":
            tensors = tuple(t.double() for t in tensors)
        return dplr_kernel(*tensors, L, align=align, tol=max(tol, 1e-11), backend=self.backend).to(C.dtype)
