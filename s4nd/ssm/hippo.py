"""Initial state matrices: HiPPO operators in diagonal-plus-low-rank form, and their diagonal simplifications.

A HiPPO matrix is normal up to a low-rank term: A = V diag(Lambda) V^* - P P^T with P real, so that in the basis V the
state-space model is (diag(Lambda) - P P^*, B) with complex vectors P, B. Eigenvalues come in conjugate pairs; one of each
pair is kept, the one with Im <= 0. Everything is computed in float64.

References: Gu et al., "How to Train Your HiPPO", 2022, arXiv:2206.12037 (LegS, LegT, FouT); Gu et al., "On the
Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893 (Lin, Inv).
Shapes: N state size (even), R low rank (1, or 2 for LegT).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def legs(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled Legendre measure. A_nk = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, else 0.

    Returns:
        A (N, N), b (N,), P (1, N) real, with A + P P^T = -1/2 I + a skew-symmetric matrix.
    """
    n = torch.arange(N, dtype=torch.float64)
    b = torch.sqrt(2 * n + 1)
    A = -torch.tril(torch.outer(b, b), -1) - torch.diag(n + 1)
    return A, b, torch.sqrt(n + 0.5)[None]


def legt(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Translated Legendre measure on [0, 1]. A_nk = -1/2 sqrt((2n+1)(2k+1)) s, s = (-1)^(n-k) for n < k, else 1.

    Returns:
        A (N, N), b (N,), P (2, N) real, with A + P P^T skew-symmetric.
    """
    n = torch.arange(N, dtype=torch.float64)
    q = torch.sqrt(2 * n + 1)
    sign = torch.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1.0)
    odd = n % 2 == 1
    P = torch.stack([torch.where(odd, q, 0.0), torch.where(odd, 0.0, q)]) / math.sqrt(2)
    return -0.5 * torch.outer(q, q) * sign, 0.5 * q, P


def fout(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Truncated Fourier measure. A = rotations by pi k on the pairs (2k, 2k+1), minus b b^T; b_0 = 1, b_2k = sqrt 2.

    Returns:
        A (N, N), b (N,), P (1, N) real, with A + P P^T skew-symmetric.
    """
    b = torch.zeros(N, dtype=torch.float64)
    b[0::2] = math.sqrt(2)
    b[0] = 1.0
    freqs = torch.zeros(N - 1, dtype=torch.float64)
    freqs[0::2] = math.pi * torch.arange(N // 2)
    rotation = torch.diag(freqs, -1) - torch.diag(freqs, 1)
    return rotation - torch.outer(b, b), b, b[None]


HIPPO: dict[str, Callable[[int], tuple[Tensor, Tensor, Tensor]]] = {"legs": legs, "legt": legt, "fout": fout}


def dplr_init(name: str, N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A HiPPO operator in diagonal-plus-low-rank form.

    Args:
        name: legs, legt or fout.
        N: state size, even.

    Returns:
        Lambda (N/2,), P (R, N/2), B (N/2,), V (N, N/2), complex128, fastest mode first. The phase of each mode, which is
        free, is chosen so that V[0, n] > 0, or B_n on the positive imaginary axis where V[0, n] = 0.
    """
    _check(name, N, HIPPO)
    A, b, P = HIPPO[name](N)
    normal = A + P.T @ P
    damping = normal.diagonal().mean()
    skew = (normal - normal.T) / 2
    omega, V = torch.linalg.eigh(1j * skew)  # skew = V diag(-i omega) V^*, omega ascending
    omega, V = omega[N // 2 :].flip(0), V[:, N // 2 :].flip(1)
    if name == "fout":
        # eigh returns an arbitrary basis of the double eigenvalue 0; this vector and its conjugate span it.
        V[:, -1] = 0
        V[0, -1], V[1, -1] = math.sqrt(0.5), 1j * math.sqrt(0.5)
        omega[-1] = 0
    B = V.mH @ b.to(V.dtype)
    seen = V[0].abs() > 1e-9
    phase = torch.where(seen, V[0], 1j * B.conj())
    V = V * (phase / phase.abs()).conj()
    Lambda = torch.complex(damping.expand_as(omega), -omega)
    return Lambda, P.to(V.dtype) @ V.conj(), V.mH @ b.to(V.dtype), V


def _s4d_lin(N: int) -> Tensor:
    """A_n = -1/2 - i pi n: (N/2,) complex128, slowest mode first."""
    n = torch.arange(N // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), -math.pi * n)


def _s4d_inv(N: int) -> Tensor:
    """A_n = -1/2 - i (N / pi) (N / (2n + 1) - 1): (N/2,) complex128, fastest mode first."""
    n = torch.arange(N // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), -(N / math.pi) * (N / (2 * n + 1) - 1))


def _s4d_legs(N: int) -> tuple[Tensor, Tensor]:
    """The DPLR form of LegS without its low-rank term: A = Lambda, and half of its B (Gu et al., 2022, arXiv:2206.11893:
    A with P P^T left out approximates LegS with half the input). Returns A, B (N/2,) complex128, fastest mode first."""
    Lambda, _, B, _ = dplr_init("legs", N)
    return Lambda, B / 2


def _s4d_real(N: int) -> Tensor:
    """A_n = -(n + 1): (N/2,) complex128."""
    return -torch.arange(1, N // 2 + 1, dtype=torch.float64).to(torch.complex128)


def _s4d_random(N: int) -> Tensor:
    """Re A = -1/2, Im A uniform on the band of Lin, (-pi N/2, 0]: (N/2,) complex128."""
    return torch.complex(
        torch.full((N // 2,), -0.5, dtype=torch.float64), -math.pi * N / 2 * torch.rand(N // 2, dtype=torch.float64)
    )


DIAGONAL: dict[str, Callable[[int], Tensor | tuple[Tensor, Tensor]]] = {
    "lin": _s4d_lin,
    "inv": _s4d_inv,
    "legs": _s4d_legs,
    "real": _s4d_real,
    "random": _s4d_random,
}


def diagonal_init(name: str, N: int) -> tuple[Tensor, Tensor]:
    """A diagonal state matrix and its input vector.

    Args:
        name: lin, inv, legs, real or random.
        N: state size, even.

    Returns:
        A (N/2,), B (N/2,) complex128; B = 1 but for legs.
    """
    _check(name, N, DIAGONAL)
    made = DIAGONAL[name](N)
    return made if isinstance(made, tuple) else (made, torch.ones_like(made))


def diagonal_rows(name: str, N: int, S: int) -> tuple[Tensor, Tensor]:
    """`diagonal_init` for S models: A, B (S, N/2), or (1, N/2) if all are the same; random ones are drawn for each."""
    drawn = [diagonal_init(name, N) for _ in range(S if name == "random" else 1)]
    return torch.stack([A for A, _ in drawn]), torch.stack([B for _, B in drawn])


def random_dplr(N: int, S: int) -> tuple[Tensor, Tensor, Tensor]:
    """S random models in diagonal-plus-low-rank form: Lambda as in `_s4d_random`, P complex normal of unit variance, B = 1.

    Returns:
        Lambda (S, N/2), P (1, S, N/2), B (S, N/2) complex128.
    """
    Lambda, B = diagonal_rows("random", N, S)
    return Lambda, torch.randn(1, S, N // 2, dtype=torch.complex128), B


def _check(name: str, N: int, known: dict) -> None:
    if name not in known:
        raise ValueError(f"init must be one of {sorted(known)}, got {name!r}")
    if N < 2 or N % 2:
        raise ValueError(f"d_state must be even and at least 2 (one of each conjugate pair is kept), got {N}")
