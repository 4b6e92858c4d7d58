"""Kernels with a diagonal state matrix: whatever their parameters are, they come to modes, and the modes to a kernel."""

from torch import Tensor

from s4nd.nn.kernels.base import SSMKernel, Values
from s4nd.ssm import diagonal_kernel, diagonal_step, folded_kernel
from s4nd.ssm.stepping import Step


class DiagonalKernel(SSMKernel):
    """The family. A member says what its modes do in a step (or, for a centred kernel, in half a step) of the present grid:

    x = exp(log_a) x + b u,   y = 2 Re sum_n C_n x_n
    """

    folds = True

    def modes(self, p: Values, L: int | None, rate: float, fraction: float) -> tuple[Tensor, Tensor]:
        """What `fraction` of a step does, 1 or 1/2, on an axis of L samples, read at `rate`. L is None where the length is not
        known: never if the kernel `needs_length`.

        Returns:
            log_a, b: (H, N/2, 2).
        """
        raise NotImplementedError

    def _kernel(self, p: Values, C: Tensor, L: int, rate: float, align: str) -> Tensor:
        log_a, b = self.modes(p, L, rate, 0.5 if align == "centre" else 1.0)
        return diagonal_kernel(log_a, b, C, L, align=align, backend=self.backend)

    def _folded(self, p: Values, C: Tensor, L: int, rate: float, align: str, trained: int) -> Tensor:
        log_a, b = self.modes(p, trained, 1.0, 0.5 if align == "centre" else 1.0)
        return folded_kernel(log_a, b, C, L, rate, align=align, backend=self.backend)

    def _recurrence(self, p: Values, C: Tensor, n: int | None, rate: float, align: str) -> Step:
        log_a, b = self.modes(p, n, rate, 0.5 if align == "centre" else 1.0)
        return diagonal_step(log_a, b, C, align=align)
