"""Kernel of a diagonal-plus-low-rank state-space model (S4) from its transfer function: Cauchy products on a circle.

    K(v) = sum_l k[l] v^l = 2 dt / (1 + v) C (z - dt A)^-1 B,   z = 2 (1 - v) / (1 + v),   A = diag(Lambda) - P P^*

(Gu et al., 2021, arXiv:2111.00396, appendix C.3, for the bilinear rule.) With the diagonal resolvent between the inputs (B, P)
and the outputs (C, P^*), r_ij, each a Cauchy product, the Woodbury identity takes the low-rank terms in one by one:

    r_ij - dt r_iP (1 + dt r_PP)^-1 r_Pj.

The published algorithm takes the M-th roots of unity, and needs C (I - Ab^L) in place of C, which is of one length and one
step. On a circle of radius rho < 1 the true C serves at every length and every step: the inverse FFT of M values is rho^l k[l]
plus what wraps round, about rho^M, and division by rho^l lifts rounding to eps rho^-L. Inside the unit circle Re z > 0, where
the system has no poles, r_PP has a positive real part, and nothing is divided by less than one. No node is z = infinity.

Shapes: C kernels per head, H heads, N modes (one of each conjugate pair), R low rank, L length, M nodes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from s4nd.ops import cauchy, pairs
from s4nd.ssm.loop import oversampling_for


def dplr_kernel_cauchy(
    dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, L: int, *, tol: float, backend: str = "auto"
) -> Tensor:
    """The first L samples of the impulse response at step dt; arguments and result as in `dplr_kernel`, align="edge"."""
    M = -(-oversampling_for(tol, Lambda.dtype) * L // 4) * 4  # a multiple of four transforms faster
    log_rho = math.log(torch.finfo(Lambda.dtype).eps) / (L + M)
    where: dict[str, Any] = dict(dtype=Lambda.dtype, device=Lambda.device)
    angle = torch.arange(M // 2 + 1, **where) * (-2 * math.pi / M)  # the other nodes are the conjugates of these
    v = torch.polar(torch.full_like(angle, math.exp(log_rho)), angle)
    inverse = 1 / (1 + v)
    z = torch.view_as_real(2 * (1 - v) * inverse)
    rows, columns = torch.cat([C, pairs.conj(P)]), torch.cat([B[None], P])
    w = pairs.mul(rows[:, None], columns).flatten(0, 1)
    r = torch.view_as_complex(cauchy(w.to(Lambda.dtype), dt[:, None, None] * Lambda, z, backend=backend))
    r = r.unflatten(0, (len(rows), len(columns)))  # (C+R, 1+R, H, M/2 + 1)
    step = dt[:, None]
    for _ in P:
        heard = r[-1, :-1] / (1 / step + r[-1, -1])
        r = r[:-1, :-1] - r[:-1, -1:] * heard
    k = torch.fft.irfft(r[:, 0] * (2 * step * inverse), n=M)[..., :L]
    return k * torch.exp(-log_rho * torch.arange(L, **where))
