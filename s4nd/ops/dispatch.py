"""Which backend computes a product, and why another one cannot."""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from s4nd.ops.cauchy import cauchy_definition, cauchy_torch
from s4nd.ops.constant import constant
from s4nd.ops.vandermonde import centred, vandermonde_definition, vandermonde_torch

BACKENDS = ("auto", "torch", "keops", "triton")

_logger = logging.getLogger("s4nd")


class BackendError(RuntimeError):
    """A backend that was asked for cannot run here; the message says why."""


@constant
def choose(device: torch.device) -> str:
    """What "auto" is on this device: triton on CUDA where it really runs, torch elsewhere. It is logged once.

    KeOps compiles at first use, so it must be asked for.
    """
    return _chosen(device.type, _index(device))


@constant
def triton_refusal(device: torch.device) -> str | None:
    """Why Triton's programs cannot run on tensors of this device, found by a small run; None if they can."""
    return _triton_refusal(device.type, _index(device))


def vandermonde(w: Tensor, x: Tensor, L: int, *, centre: bool = False, backend: str = "auto") -> Tensor:
    """2 Re sum_n w_jn exp(l x_n): w (J, H, N, 2), x (H, N, 2) -> (J, H, L). See ops/vandermonde.py.

    Args:
        centre: sums of two samples of half a step, see ops/vandermonde.py.
        backend: "torch"; "keops" and "triton", which raise BackendError where they cannot run; "auto", see `choose`.
    """
    backend = _resolve(backend, x.device)
    if backend == "triton":
        from s4nd.ops._triton import vandermonde_triton

        return vandermonde_triton(w, x, L, centre)
    if backend == "keops":
        from s4nd.ops._keops import vandermonde_keops

        return centred(vandermonde_keops(w, x, 2 * L)) if centre else vandermonde_keops(w, x, L)
    return vandermonde_torch(w, x, L, centre)


def cauchy(w: Tensor, x: Tensor, z: Tensor, *, backend: str = "auto") -> Tensor:
    """sum_n w_jn / (z_l - x_n) + conj(w_jn) / (z_l - conj x_n): w (J, H, N, 2), x (H, N, 2), z (H, L, 2) or (L, 2)
    -> (J, H, L, 2). See ops/cauchy.py; backend as in `vandermonde`."""
    backend = _resolve(backend, x.device)
    if backend == "triton":
        from s4nd.ops._triton_cauchy import cauchy_triton

        return cauchy_triton(w, x, z)
    if backend == "keops":
        from s4nd.ops._keops import cauchy_keops

        return cauchy_keops(w, x, z)
    return cauchy_torch(w, x, z)


def _resolve(backend: str, device: torch.device) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "triton" and (reason := triton_refusal(device)):
        raise BackendError(f"backend='triton' cannot run on {device}: {reason}; use backend='torch' or 'auto'")
    return choose(device) if backend == "auto" else backend


def _index(device: torch.device) -> int | None:
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.cuda.current_device()
    return device.index


def _device(type_: str, index: int | None) -> torch.device:
    return torch.device(type_) if index is None else torch.device(type_, index)


@cache
def _chosen(type_: str, index: int | None) -> str:
    if type_ != "cuda":
        return "torch"
    device, reason = _device(type_, index), _triton_refusal(type_, index)
    if reason:
        _logger.warning("kernels on %s are computed by torch: Triton cannot run there: %s", device, reason)
        return "torch"
    _logger.info("kernels on %s are computed by Triton", device)
    return "triton"


@cache
def _triton_refusal(type_: str, index: int | None) -> str | None:
    interpreted = type_ == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if type_ != "cuda" and not interpreted:
        return "it needs a CUDA device (or its interpreter: TRITON_INTERPRET=1)"
    if type_ == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        return _small_run(_device(type_, index))
    except (
        Exception
    ) as error:  # it fails in many ways (no compiler, an old card or driver): all mean that it cannot be used
        return f"a small run failed: {error!r}"


def _small_run(device: torch.device) -> str | None:
    """What is wrong with small products on this device, values and gradients; None if nothing is.

    Both of them: a module of kernels is interpreted or compiled as the environment says when it is imported, and that they
    are imported here together keeps one answer true for both.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from s4nd.ops._triton import vandermonde_triton
    from s4nd.ops._triton_cauchy import cauchy_triton

    w = torch.linspace(-1, 1, 24).view(2, 2, 3, 2)
    x = torch.linspace(-1, 0, 12).view(2, 3, 2)
    z = torch.linspace(1, 2, 10).view(5, 2)
    forms: dict[str, tuple[Callable, Callable, int | Tensor]] = {
        "vandermonde": (vandermonde_triton, vandermonde_definition, 5),
        "cauchy": (cauchy_triton, cauchy_definition, z),
    }
    with unset_fake_temporarily(), torch.enable_grad():
        for name, (form, definition, where) in forms.items():
            results = []
            for function, on in ((form, device), (definition, torch.device("cpu"))):
                inputs = [t.to(on).requires_grad_() for t in (w.clone(), x.clone())]
                k = function(*inputs, where.to(on) if isinstance(where, Tensor) else where)
                results.append([t.detach().cpu() for t in (k, *torch.autograd.grad(k.square().sum(), inputs))])
            for part, mine, right in zip(("value", "gradient of w", "gradient of x"), *results, strict=True):
                # Sums of at most 30 terms, rounded in float32.
                if not torch.allclose(mine, right, rtol=0, atol=1e-5 * right.abs().max().item()):
                    return f"the {part} of a small {name} product is wrong by {(mine - right).abs().max():.1e}"
    return None
