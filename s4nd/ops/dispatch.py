"""Which backend computes a Vandermonde or a Cauchy product, and why another one cannot."""

from collections.abc import Callable

from torch import Tensor

from s4nd.ops.cauchy import cauchy_torch
from s4nd.ops.vandermonde import vandermonde_torch

BACKENDS = ("auto", "torch", "keops")


def vandermonde(v: Tensor, x: Tensor, L: int, *, backend: str = "auto") -> Tensor:
    """k[l] = 2 Re sum_n v_n exp(l x_n): v (C, H, N, 2), x (H, N, 2) -> (C, H, L). See ops/vandermonde.py."""
    return _select(backend, "vandermonde", vandermonde_torch)(v, x, L)


def cauchy(u: Tensor, v: Tensor, w: Tensor, z: Tensor, *, backend: str = "auto") -> Tensor:
    """sum_n u_in v_jn / (z - w_n) + conj: u (I, H, N, 2), v (J, H, N, 2), w (H, N, 2), z (M, 2) -> (I, J, H, M, 2). See
    ops/cauchy.py."""
    return _select(backend, "cauchy", cauchy_torch)(u, v, w, z)


def _select(backend: str, name: str, torch_form: Callable) -> Callable:
    """The function that computes `name`. "auto" is plain torch: it runs everywhere; KeOps compiles at first use and is
    worth it only for kernels too large to hold the N x L matrix, so it must be asked for."""
    if backend in ("auto", "torch"):
        return torch_form
    if backend == "keops":
        from s4nd.ops import _keops

        return getattr(_keops, f"{name}_keops")
    raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
