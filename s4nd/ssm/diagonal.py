"""Kernel of a diagonal state-space model (S4D): a Vandermonde product.

    k[l] = 2 Re sum_n C_n gain_n B_n a_n^l,   0 <= l < L

Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.
Shapes: C kernels per head, H heads, N modes (one of each conjugate pair), L length. Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import pairs, vandermonde
from s4nd.ssm.align import check_align
from s4nd.ssm.discretize import DISCRETIZATIONS


def diagonal_kernel(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    L: int,
    *,
    disc: str = "zoh",
    align: str = "edge",
    backend: str = "auto",
) -> Tensor:
    """The first L samples of the impulse response at step dt.

    Args:
        dt: (H,) positive.
        A, B: (H, N, 2), Re A < 0.
        C: (C, H, N, 2).
        L: at least 1.
        disc: a key of DISCRETIZATIONS.
        align: "edge", or "centre": the kernel of ssm/align.py in closed form, from the half step a' = a^(1/2):
            k[0] = 2 Re sum C gain' B, k[j] = 2 Re sum C gain' B (a' + a'^2) a^(j-1).

    Returns:
        (C, H, L) real.
    """
    check_align(align)
    if disc not in DISCRETIZATIONS:
        raise ValueError(f"disc must be one of {sorted(DISCRETIZATIONS)}, got {disc!r}")
    if align == "edge":
        log_a, gain = DISCRETIZATIONS[disc](dt, A)
        return vandermonde(pairs.mul(C, pairs.mul(gain, B)), log_a, L, backend=backend)
    log_half, gain = DISCRETIZATIONS[disc](dt / 2, A)
    v = pairs.mul(C, pairs.mul(gain, B))
    k0 = 2 * v[..., 0].sum(-1, keepdim=True)
    if L == 1:
        return k0
    v = pairs.mul(v, pairs.exp(log_half) + pairs.exp(2 * log_half))
    return torch.cat([k0, vandermonde(v, 2 * log_half, L - 1, backend=backend)], dim=-1)
