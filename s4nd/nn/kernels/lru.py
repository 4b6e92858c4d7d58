"""LRU: a diagonal recurrence that is discrete at the trained grid."""

import math
from typing import Any

import torch
from torch import Tensor

from s4nd.nn.kernels.base import Values
from s4nd.nn.kernels.continuous import DAMPING_RANGE
from s4nd.nn.kernels.diagonal import DiagonalKernel
from s4nd.ops import pairs, phi1
from s4nd.ops.precision import widest

LOG_GAMMA_MAX = 20.0


class LRUKernel(DiagonalKernel):
    """Linear recurrent unit (Orvieto et al., 2023, arXiv:2303.06349): at rate 1

        x = lambda x + gamma B u,   lambda = exp(-exp(nu) + i theta),   gamma = exp(log_gamma)

    At another rate the same continuous system with its input held over r = rate steps: lambda^r, and the gain
    gamma (lambda^r - 1) / (lambda - 1). lambda alone does not tell theta from theta + 2 pi: theta in [-pi, pi) is meant.

    `init` is ring: lambda uniform on the ring r_min <= |lambda| <= r_max, 0 <= theta <= max_phase, and
    gamma = sqrt(1 - |lambda|^2). The paper's max_phase is 2 pi; phases beyond pi are those of the conjugates, which are read
    too here. C is drawn with standard deviation scale / sqrt(N), so that a white input keeps its variance.
    """

    name = "lru"
    inits = ("ring",)
    default_init = "ring"

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = math.pi,
        scale: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(d_model, d_state, channels, scale=scale / math.sqrt(max(1, d_state)), **kwargs)
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"need 0 <= r_min < r_max <= 1, got {r_min} and {r_max}")
        if not 0 < max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase must be in (0, 2 pi], got {max_phase}")
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase
        self.nu, self.theta, self.log_gamma = (self._empty(self.n_ssm, self.n_modes) for _ in range(3))
        self.B = self._empty(self.n_ssm, self.n_modes, 2)
        self._complete()

    def _set_operator(self, name: str, rows: slice) -> None:
        where: dict[str, Any] = dict(dtype=widest(self.nu.device), device=self.nu.device)
        inner, outer = self.r_min**2, self.r_max**2
        square = inner + (outer - inner) * (1 - torch.rand(self.nu[rows].shape, **where))  # |lambda|^2
        damping = (-0.5 * torch.log(square)).clamp(*DAMPING_RANGE)
        self.nu[rows] = torch.log(damping).to(self.nu)
        self.theta[rows] = self.theta[rows].uniform_(0, self.max_phase)
        self.log_gamma[rows] = (0.5 * torch.log(-torch.expm1(-2 * damping))).to(self.nu)
        self.B[rows] = self.B.new_tensor([1.0, 0.0])

    def log_lambda(self, p: Values) -> Tensor:
        """(S, N/2, 2), the imaginary part in [-pi, pi)."""
        damping = torch.exp(p["nu"].clamp(math.log(DAMPING_RANGE[0]), math.log(DAMPING_RANGE[1])))
        return torch.stack([-damping, torch.remainder(p["theta"] + math.pi, 2 * math.pi) - math.pi], dim=-1)

    def phase(self, p: Values) -> Tensor:
        return self.per_head(self.log_lambda(p))[..., 1].abs()

    @torch.no_grad()
    def rescale(self, rate: float) -> None:
        """Make the kernel at rate 1 what it was at `rate`; if centred, of the modes that the new grid can hold
        (|theta| rate < pi)."""
        x = self.log_lambda(self.values())
        self.B.copy_(pairs.mul(_held(x, rate), self.B))
        self.nu += math.log(rate)  # type: ignore[misc]  # in place a parameter stays one
        self.theta.copy_(rate * x[..., 1])

    def modes(self, p: Values, L: int | None, rate: float, fraction: float) -> tuple[Tensor, Tensor]:
        x = self.log_lambda(p)
        gamma = torch.exp(p["log_gamma"].clamp(max=LOG_GAMMA_MAX))[..., None]
        b = gamma * p["B"]
        if rate * fraction != 1:
            b = pairs.mul(_held(x, rate * fraction), b)
        return self.per_head(rate * fraction * x), self.per_head(b)


def _held(x: Tensor, r: float) -> Tensor:
    """(e^(r x) - 1) / (e^x - 1), which is r at x = 0."""
    return r * pairs.div(phi1(r * x), phi1(x))
