"""Kernel of a diagonal-plus-low-rank state-space model (S4): Vandermonde products, and feedback loops closed around them.

    A = diag(Lambda) - P P^*,   k[l] = C Ab^l Bb  with the bilinear Ab, Bb

The generating function K(w) = sum_l k[l] w^l is, with z = 2 (1 - w) / (1 + w) (Gu et al., "Efficiently Modeling Long
Sequences with Structured State Spaces", 2021, arXiv:2111.00396, appendix C.3),

    K(w) = 2 dt / (1 + w) C (z - dt A)^-1 B.

The low-rank part is a feedback: the diagonal system's outputs P^* x come back in through -P. By the Woodbury identity K is
that of the diagonal systems between the inputs (B, P) and the outputs (C, P^*), with R loops closed around them (ssm/loop.py).
C is the true read-out: nothing depends on L or on the step, so the kernel is exact at every rate.

Shapes: C kernels per head, H heads, N modes (one of each conjugate pair), R low rank, L length. Complex tensors are real
pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import centred, pairs, vandermonde
from s4nd.ssm.align import check_align
from s4nd.ssm.discretize import bilinear
from s4nd.ssm.loop import close_loop, through_loop
from s4nd.ssm.resolvent import dplr_kernel_cauchy

ALGORITHMS = ("auto", "loops", "cauchy")


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
    algorithm: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The first L samples of the impulse response at step dt.

    Args:
        dt: (H,) positive.
        Lambda, B: (H, N, 2), Re Lambda <= 0.
        P: (R, H, N, 2).
        C: (C, H, N, 2).
        L: at least 1.
        align: "edge", or "centre" (see ssm/align.py; twice the samples, because it needs the kernel at half the step).
        tol: wanted error, relative to the kernel, see `close_loop`.
        algorithm: "loops", what stands above; "cauchy", Cauchy products and the Woodbury identity (see ssm/resolvent.py), which
            shares the system with it and the transform on a circle; "auto", the faster by measurement: on CPUs loops, whose
            Vandermonde products need few exponentials. No GPU was measured; there too it is loops.

    Returns:
        (C, H, L) real, of C's dtype. Lambda in float64 keeps the phases of late samples whatever that is.
    """
    check_align(align)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    centre = align == "centre"
    if centre:
        dt, L = dt / 2, 2 * L
    if algorithm == "cauchy":
        k = dplr_kernel_cauchy(dt, Lambda, P, B, C, L, tol=tol, backend=backend).to(C.dtype)
        return centred(k) if centre else k
    log_a, gain = bilinear(dt[:, None], Lambda)
    rows = torch.cat([C, pairs.conj(P)])  # (C+R, H, N, 2)
    columns = pairs.mul(torch.cat([B[None], P]), gain.to(B.dtype))  # (1+R, H, N, 2)
    w = pairs.mul(rows[:, None], columns)  # (C+R, 1+R, H, N, 2)
    if len(P) == 1:  # what does not go through the loop is needed at the step itself only, not at its half
        k = vandermonde(w[:-1, 0], log_a, L // 2 if centre else L, centre=centre, backend=backend)
        g = vandermonde(torch.cat([w[:, 1], w[-1:, 0]]), log_a, L, backend=backend)
    else:
        g = vandermonde(w.flatten(0, 1), log_a, L, backend=backend).unflatten(0, (len(rows), len(columns)))
        for _ in P[1:]:
            g = close_loop(g, tol)
        k, g = g[:-1, 0], torch.cat([g[:, 1], g[-1:, 0]])
        k = centred(k) if centre else k
    return k - through_loop(g, len(C), tol, centre).squeeze(1)
