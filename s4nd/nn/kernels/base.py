"""What all 1-D state-space kernels share: parameters, and the kernel they give at any length and sampling rate.

Shapes: H heads (d_model), N states (d_state; N/2 kept, one of each conjugate pair), S independent (A, B) (n_ssm; head h uses
number h mod S), C kernels per head, R low rank, L length. Complex parameters are real pairs (..., 2).
"""

import math

import torch
from torch import Tensor, nn

from s4nd.nn.tags import SSM_LR, mark

# Outside these ranges parameters are used as if they lay at the nearer end, so that no checkpoint gives inf or NaN.
DT_RANGE = (1e-6, 1e2)
DAMPING_RANGE = (1e-8, 1e4)  # of -Re A
# Where an initial operator has Re A = 0 (FouT, LegT): its logarithm is stored.
INITIAL_DAMPING = 1e-4

# An operator per part of the state-space models, in equal parts.
COMBINATIONS = {"hippo": ("legs", "fout")}


class SSMKernel(nn.Module):
    """What all kernels share: dt, A, B, C and how they are used at a sampling rate.

    Args:
        d_model: H.
        d_state: N, even.
        copies: C, kernels per head.
        init: name of the initial state matrix.
        n_ssm: S, divides H; None for H.
        dt_min, dt_max: dt is drawn log-uniformly between them, in units where the trained grid has step 1.
        scale: standard deviation of the initial C, a complex number.
        backend: of the contraction, see ops/dispatch.py.
        device, dtype: of the parameters; half precisions are raised to float32 and stay there.
    """

    inits: tuple[str, ...] = ()

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        copies: int = 1,
        *,
        init: str,
        n_ssm: int | None = 1,
        dt_min: float = 0.01,
        dt_max: float = 1.0,
        scale: float = 1.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        S = d_model if n_ssm is None else n_ssm
        if init not in self.inits:
            raise ValueError(f"init of {type(self).__name__} must be one of {sorted(self.inits)}, got {init!r}")
        parts = len(COMBINATIONS.get(init, (init,)))
        if S < 1 or d_model % S or S % parts:
            raise ValueError(
                f"n_ssm must divide d_model={d_model} and be a multiple of {parts} for init={init!r}, got {n_ssm}"
            )
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2 (one of each conjugate pair is kept), got {d_state}")
        if not DT_RANGE[0] <= dt_min <= dt_max <= DT_RANGE[1]:
            raise ValueError(f"need {DT_RANGE[0]} <= dt_min <= dt_max <= {DT_RANGE[1]}, got {dt_min} and {dt_max}")
        self.init, self.backend = init, backend
        self.dt_min, self.dt_max, self.scale = dt_min, dt_max, scale
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        empty = lambda *shape: nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))  # noqa: E731
        self.log_dt = empty(d_model)
        self.log_A_real = empty(S, d_state // 2)  # A = -exp(log_A_real) + i A_imag
        self.A_imag = empty(S, d_state // 2)
        self.B = empty(S, d_state // 2, 2)
        self.C = empty(copies, d_model, d_state // 2, 2)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw dt and C, and set A and B to their initial operators."""
        self.log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        self.C.normal_(std=self.scale / math.sqrt(2))
        names = COMBINATIONS.get(self.init, (self.init,))
        for name, rows in zip(names, torch.arange(len(self.B)).chunk(len(names)), strict=True):
            self._set_operator(name, slice(int(rows[0]), int(rows[-1]) + 1))

    def _set_operator(self, name: str, rows: slice) -> None:
        raise NotImplementedError

    def _set_poles(self, A: Tensor, B: Tensor, rows: slice) -> None:
        self.log_A_real[rows] = torch.log((-A.real).clamp(min=INITIAL_DAMPING)).to(self.log_A_real)
        self.A_imag[rows] = A.imag.to(self.A_imag)
        self.B[rows] = torch.view_as_real(B).to(self.B)

    def _mark(self) -> None:
        for name, param in self.named_parameters():
            if name != "C":
                mark(param, lr=SSM_LR, weight_decay=0.0)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._mark()  # copying a Parameter, as copy.deepcopy and pickle do, drops what is written on it

    def _apply(self, fn, recurse: bool = True):
        """Follows every change of device and of dtype but one: half precision cannot hold dt and A, float32 stays."""

        def keep_float32(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_float32, recurse)

    def per_head(self, x: Tensor) -> Tensor:
        """(..., S, N/2, 2) -> (..., H, N/2, 2)."""
        return x.repeat(*([1] * (x.ndim - 3)), len(self.log_dt) // x.shape[-3], 1, 1)

    def dt(self) -> Tensor:
        """(H, 1) step on the trained grid."""
        return torch.exp(self.log_dt.clamp(math.log(DT_RANGE[0]), math.log(DT_RANGE[1])))[:, None]

    def A(self) -> Tensor:
        """(H, N/2, 2) state matrix, or its diagonal part."""
        damping = torch.exp(self.log_A_real.clamp(math.log(DAMPING_RANGE[0]), math.log(DAMPING_RANGE[1])))
        return self.per_head(torch.stack([-damping, self.A_imag], dim=-1))

    def bandlimit_mask(self, bandlimit: float, rate: float) -> Tensor:
        """(H, N/2) bool, the modes below the limit: max(1, rate) dt |Im A| / (2 pi) < bandlimit / 2.

        bandlimit 1 is the Nyquist frequency of the coarser of the trained and the present grid: a mode that either of them
        cannot hold would alias. Nguyen et al., 2022, arXiv:2210.06583, section 3.2 (whose inequality is printed reversed).
        """
        return max(1.0, rate) * self.phase() / (2 * math.pi) < bandlimit / 2

    def phase(self) -> Tensor:
        """(H, N/2) radians by which each mode turns in a step of the trained grid, not negative."""
        return self.dt() * self.A()[..., 1].abs()

    @torch.no_grad()
    def rescale(self, rate: float) -> None:
        """Make the kernel at rate 1 what it was at `rate`."""
        self.log_dt += math.log(rate)

    def forward(self, L: int, rate: float = 1.0, *, bandlimit: float | None = None, align: str = "edge") -> Tensor:
        """The kernels on a grid whose step is `rate` times the trained one: (C, H, L) real."""
        C = self.C
        if bandlimit is not None:
            C = C * self.bandlimit_mask(bandlimit, rate)[..., None]
        # Autocast would take the matrix products below to half precision, which cannot hold the kernel's phases.
        with torch.autocast(C.device.type, enabled=False):
            return self._kernel(L, rate, C, align)

    def _kernel(self, L: int, rate: float, C: Tensor, align: str) -> Tensor:
        raise NotImplementedError
