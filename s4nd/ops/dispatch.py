"""Which backend computes a Vandermonde product, and why another one cannot."""

from torch import Tensor

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
