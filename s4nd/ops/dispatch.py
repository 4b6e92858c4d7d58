"""Which backend computes a Vandermonde product, and why another one cannot."""

from torch import Tensor

from s4nd.ops.cauchy import cauchy_torch
from s4nd.ops.vandermonde import centred, vandermonde_torch

BACKENDS = ("auto", "torch", "keops")


class BackendError(RuntimeError):
    """A backend that was asked for cannot run here; the message says why."""


def vandermonde(w: Tensor, x: Tensor, L: int, *, centre: bool = False, backend: str = "auto") -> Tensor:
    """2 Re sum_n w_jn exp(l x_n): w (J, H, N, 2), x (H, N, 2) -> (J, H, L). See ops/vandermonde.py.

    "auto" is plain torch: it runs everywhere; KeOps compiles at first use, so it must be asked for.
    """
    if backend in ("auto", "torch"):
        return vandermonde_torch(w, x, L, centre)
    if backend == "keops":
        from s4nd.ops._keops import vandermonde_keops

        return centred(vandermonde_keops(w, x, 2 * L)) if centre else vandermonde_keops(w, x, L)
    raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def cauchy(w: Tensor, x: Tensor, z: Tensor, *, backend: str = "auto") -> Tensor:
    """sum_n w_jn / (z_l - x_n) + conj(w_jn) / (z_l - conj x_n): w (J, H, N, 2), x (H, N, 2), z (H, L, 2) or (L, 2)
    -> (J, H, L, 2). See ops/cauchy.py."""
    if backend in ("auto", "torch"):
        return cauchy_torch(w, x, z)
    if backend == "keops":
        from s4nd.ops._keops import cauchy_keops

        return cauchy_keops(w, x, z)
    raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
