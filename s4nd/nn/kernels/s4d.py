"""S4D: a diagonal state matrix, discretised."""

from torch import Tensor

from s4nd.nn.kernels.diagonal import DiagonalKernel
from s4nd.ops import pairs
from s4nd.ssm import DISCRETIZATIONS, diagonal_init
from s4nd.ssm.hippo import DIAGONAL


class S4DKernel(DiagonalKernel):
    """S4D (Gu et al., 2022, arXiv:2206.11893): `disc` is one of the discretisations of ssm/discretize.py."""

    inits = tuple(DIAGONAL)
    default_init = "lin"

    def __init__(self, *args, disc: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if disc not in (None, *DISCRETIZATIONS):
            raise ValueError(f"disc of kernel='s4d' must be one of {sorted(DISCRETIZATIONS)}, got {disc!r}")
        self.disc = disc or "zoh"
        self._mark()
        if not self.C.is_meta:
            self.reset_parameters()

    def _set_operator(self, name: str, rows: slice) -> None:
        self._set_poles(*diagonal_init(name, 2 * self.B.shape[1]), rows)

    def modes(self, L: int, rate: float, part: float) -> tuple[Tensor, Tensor]:
        log_a, gain = DISCRETIZATIONS[self.disc](self.dt(), self.A(), rate, part)
        return log_a, pairs.mul(gain, self.per_head(self.B))
