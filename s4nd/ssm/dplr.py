"""Kernel of a diagonal-plus-low-rank state-space model (S4): Cauchy products, the Woodbury identity and one inverse FFT.

    A = diag(Lambda) - P P^*,   k[l] = C Ab^l Bb  with the bilinear Ab, Bb

The generating function K(w) = sum_l k[l] w^l is, with z = 2 (1 - w) / (1 + w) (Gu et al., "Efficiently Modeling Long
Sequences with Structured State Spaces", 2021, arXiv:2111.00396, appendix C.3),

    K(w) = 2 dt / (1 + w) C (z - dt A)^-1 B.

It is sampled at M nodes of a circle of radius rho < 1: the inverse FFT gives rho^l k[l] plus what wraps round, about
rho^M, and the division by rho^l lifts the rounding noise to eps rho^-L. With M = c L both are eps^(c / (c+1)) for the rho
chosen here. C is the true read-out: nothing depends on L or on the step, so the kernel is exact at every rate.

Shapes: C kernels per head, H heads, N modes (one of each conjugate pair), R low rank, L length. Complex tensors are real
pairs (..., 2).
"""

import math

import torch
from torch import Tensor

from s4nd.ops import cauchy, pairs
from s4nd.ssm.align import centred, check_align

MAX_OVERSAMPLING = 4


def dplr_kernel(
    dt: Tensor,
    Lambda: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    L: int,
    *,
    align: str = "edge",
    tol: float = 1e-11,
    backend: str = "auto",
) -> Tensor:
    """The first L samples of the impulse response at step dt.

    Args:
        dt: (H,) positive.
        Lambda, B: (H, N, 2), Re Lambda <= 0.
        P: (R, H, N, 2).
        C: (C, H, N, 2).
        L: at least 1.
        align: "edge", or "centre" (see ssm/align.py; twice the nodes, because it needs the kernel at half the step).
        tol: wanted size of the wrap-round and of the lifted noise, relative to the kernel; decides the number of nodes
            (c L, c <= 4, so that float32 stops at about 2e-6).

    Returns:
        (C, H, L) real.
    """
    check_align(align)
    if align == "centre":
        return centred(dplr_kernel(dt / 2, Lambda, P, B, C, 2 * L - 1, tol=tol, backend=backend))
    eps = torch.finfo(dt.dtype).eps
    oversampling = next((c for c in range(1, MAX_OVERSAMPLING) if eps ** (c / (c + 1)) <= tol), MAX_OVERSAMPLING)
    M = oversampling * L
    log_rho = math.log(eps) * oversampling / (oversampling + 1) / M
    j = torch.arange(M // 2 + 1, dtype=dt.dtype, device=dt.device)
    w = pairs.exp(pairs.pair(torch.full_like(j, log_rho), -2 * math.pi / M * j))  # (M/2+1, 2)
    one = pairs.pair(torch.ones_like(j), torch.zeros_like(j))
    z = pairs.div(2 * (one - w), one + w)
    response = _woodbury(dt, Lambda, P, B, C, z, backend)
    spectrum = pairs.mul(response, pairs.div(2 * one, one + w))
    spectrum = pairs.view(spectrum) if pairs.complex_views(spectrum) else torch.complex(*spectrum.unbind(-1))
    lift = torch.exp(-log_rho * torch.arange(L, dtype=dt.dtype, device=dt.device))
    return torch.fft.irfft(spectrum, n=M)[..., :L] * (dt[:, None] * lift)


def _woodbury(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, z: Tensor, backend: str) -> Tensor:
    """C (z - dt Lambda + dt P P^*)^-1 B for every node: (C, H, M, 2).

    Gaussian elimination of the R low-rank rows, the last one first, from [[C S B, C S P], [P^* S B, 1/dt + P^* S P]] with
    S = (z - dt Lambda)^-1.
    No pivoting is needed: Re z > 0 and Re Lambda <= 0 give every pivot a positive real part.
    """
    R = len(P)
    rows = torch.cat([C, pairs.conj(P)])  # (C+R, H, N, 2)
    columns = torch.cat([B[None], P])  # (1+R, H, N, 2)
    K = cauchy(rows, columns, dt[:, None, None] * Lambda, z, backend=backend)  # (C+R, 1+R, H, M, 2)
    inverse_dt = pairs.pair(1 / dt, torch.zeros_like(dt))[:, None]  # (H, 1, 2)
    for _ in range(R):
        *_, last = K
        K = K[:-1, :-1] - pairs.mul(K[:-1, -1:], pairs.div(last[:-1], last[-1] + inverse_dt)[None])
    return K[:, 0]
