"""Kernel of a diagonal state-space model (S4D): a Vandermonde product.

    k[l] = 2 Re sum_n C_n b_n a_n^l,   0 <= l < L

Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.
Shapes: C kernels per head, H heads, N modes (one of each conjugate pair), L length. Complex tensors are real pairs (..., 2).
"""

from torch import Tensor

from s4nd.ops import pairs, vandermonde
from s4nd.ssm.align import check_align


def diagonal_kernel(
    log_a: Tensor, b: Tensor, C: Tensor, L: int, *, align: str = "edge", backend: str = "auto"
) -> Tensor:
    """The first L samples of the impulse response of modes x = a x + b u, read through C.

    Args:
        log_a: (H, N, 2) logarithm of what a step does to each mode; of half a step for align="centre".
        b: (H, N, 2) what it adds for a unit input; in half a step for align="centre".
        C: (C, H, N, 2) read-out.
        L: at least 1.
        align: "edge", k[l] = 2 Re sum C b a^l, or "centre": the kernel of ssm/align.py,
            k[0] = 2 Re sum C b, k[j] = 2 Re sum C b (a^(2j-1) + a^(2j)), with the a of half a step.

    Returns:
        (C, H, L) real.
    """
    check_align(align)
    return vandermonde(pairs.mul(C, b), log_a, L, centre=align == "centre", backend=backend)
