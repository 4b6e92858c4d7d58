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
# Measured on a CPU, forward and backward. Responses of so many samples are computed at a time: larger ones leave the cache and
# are new memory at every step. Above so many samples of an axis, what does not go through a loop is computed by itself.
CHUNK, APART = 2**21, 8192


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
    eager = pairs.complex_views(C) and C.device.type == "cpu"  # what traces it is not to be bound to lengths
    form = _in_chunks if eager and (len(C) + 2) * C.shape[1] * L > CHUNK else _by_loops
    return form(dt, Lambda, P, B, C, L, centre=centre, tol=tol, backend=backend)


def _in_chunks(
    dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, L: int, *, centre: bool, tol: float, backend: str
) -> Tensor:
    """`_by_loops` of some heads after others."""
    form = _beside_the_loop if len(P) == 1 and L > APART else _by_loops
    heads = max(1, CHUNK // ((len(C) + 2) * L))
    chunks = zip(*(x.split(heads) for x in (dt, Lambda, B)), P.split(heads, 1), C.split(heads, 1), strict=True)
    return torch.cat(
        [form(dt, Lambda, P, B, C, L, centre=centre, tol=tol, backend=backend) for dt, Lambda, B, P, C in chunks], dim=1
    )


def _by_loops(
    dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, L: int, *, centre: bool, tol: float, backend: str
) -> Tensor:
    """From all responses, closing loop after loop; L samples, of half a step if centred."""
    log_a, w = _diagonal(dt, Lambda, P, B, C)
    g = vandermonde(w.flatten(0, 1), log_a, L, backend=backend).unflatten(0, w.shape[:2])
    for _ in P[1:]:
        g = close_loop(g, tol)
    k = centred(g[:-1, 0]) if centre else g[:-1, 0]
    return k - through_loop(torch.cat([g[:, 1], g[-1:, 0]]), len(C), tol, centre)[:, 0]


def _beside_the_loop(
    dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, L: int, *, centre: bool, tol: float, backend: str
) -> Tensor:
    """The same of a single loop: what does not go through it is needed at the step itself only, not at its half."""
    log_a, w = _diagonal(dt, Lambda, P, B, C)
    k = vandermonde(w[:-1, 0], log_a, L // 2 if centre else L, centre=centre, backend=backend)
    g = vandermonde(torch.cat([w[:, 1], w[-1:, 0]]), log_a, L, backend=backend)
    return k - through_loop(g, len(C), tol, centre)[:, 0]


def _diagonal(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the poles (H, N, 2), and weights (C+R, 1+R, H, N, 2) of all responses of the diagonal systems."""
    log_a, gain = bilinear(dt[:, None], Lambda)
    rows = torch.cat([C, pairs.conj(P)])
    columns = pairs.mul(torch.cat([B[None], P]), gain.to(B.dtype))
    return log_a, pairs.mul(rows[:, None], columns)
