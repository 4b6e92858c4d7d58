"""Which backend computes a Vandermonde product, and why another one cannot."""

from torch import Tensor

from s4nd.ops.vandermonde import vandermonde_torch

BACKENDS = ("auto", "torch", "keops")


def vandermonde(u: Tensor, v: Tensor, x: Tensor, L: int, *, backend: str = "auto") -> Tensor:
    """2 Re sum_n u_in v_jn exp(l x_n): u (I, H, N, 2), v (J, H, N, 2), x (H, N, 2) -> (I, J, H, L). See ops/vandermonde.py.

    "auto" is plain torch: it runs everywhere; KeOps compiles at first use, so it must be asked for.
    """
    if backend in ("auto", "torch"):
        return vandermonde_torch(u, v, x, L)
    if backend == "keops":
        from s4nd.ops._keops import vandermonde_keops

        return vandermonde_keops(u, v, x, L)
    raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
