"""The state-space model by its definition, one dense step after the other: the oracle of every kernel.

    x[l] = Ab x[l-1] + Bb u[l],   y[l] = Re C x[l]

Shapes: H heads, N states (both of each conjugate pair), C kernels per head, R low rank, L length. Complex tensors here are
complex: nothing but clarity counts.
"""

import torch
from torch import Tensor


def dense_ssm(A: Tensor, B: Tensor, C: Tensor, P: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Both halves of each conjugate pair, and the low-rank term multiplied out.

    Args:
        A, B: (H, N/2) complex.
        C: (C, H, N/2) complex.
        P: (R, H, N/2) complex, or None.

    Returns:
        A (H, N, N) = diag(A, conj A) - P P^*, B (H, N), C (C, H, N).
    """
    double = lambda x: torch.cat([x, x.conj()], dim=-1)  # noqa: E731
    dense = torch.diag_embed(double(A))
    if P is not None:
        dense = dense - torch.einsum("rhn,rhm->hnm", double(P), double(P).conj())
    return dense, double(B), double(C)


def discretize_dense(
    dt: Tensor, A: Tensor, B: Tensor, disc: str, rate: float = 1.0, fraction: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Ab (H, N, N), Bb (H, N) for `fraction` of a step rate * dt (H,): the matrix forms of ssm/discretize.py."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    trained = fraction * dt[:, None, None] * A
    step = rate * trained
    if disc == "bilinear":
        Ab = torch.linalg.solve(eye - step / 2, eye + step / 2)
        return Ab, torch.linalg.solve(eye - step / 2, (rate * fraction * dt[:, None] * B)[..., None])[..., 0]
    Ab = torch.linalg.matrix_exp(step)
    if disc == "dirac":
        return Ab, fraction * B
    if disc not in ("zoh", "async"):
        raise ValueError(f"disc must be zoh, bilinear, dirac or async, got {disc!r}")
    held = Ab if disc == "zoh" else torch.linalg.matrix_exp(trained)
    return Ab, torch.linalg.solve(A, (held - eye) @ B[..., None])[..., 0]


def recurrence(Ab: Tensor, Bb: Tensor, C: Tensor, u: Tensor) -> Tensor:
    """Response to u (H, L), read after each step: (C, H, L)."""
    x, y = torch.zeros_like(Bb), []
    for u_l in u.unbind(-1):
        x = torch.einsum("hnm,hm->hn", Ab, x) + Bb * u_l[:, None]
        y.append(torch.einsum("chn,hn->ch", C, x).real)
    return torch.stack(y, dim=-1)


def centred_recurrence(Ah: Tensor, Bh: Tensor, C: Tensor, u: Tensor) -> Tensor:
    """Response to u (H, L) read at the centre of each sample: half a step, read, half a step. Ah, Bh are of step dt / 2."""
    x, y = torch.zeros_like(Bh), []
    for u_l in u.unbind(-1):
        drive = Bh * u_l[:, None]
        x = torch.einsum("hnm,hm->hn", Ah, x) + drive
        y.append(torch.einsum("chn,hn->ch", C, x).real)
        x = torch.einsum("hnm,hm->hn", Ah, x) + drive
    return torch.stack(y, dim=-1)
