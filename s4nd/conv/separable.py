"""N-D convolution with K = sum_r k_r^(1) x ... x k_r^(D).

Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces", 2022, arXiv:2210.06583:
the kernel is a (low-rank sum of) tensor products, so its convolution is a (sum of) products of 1-D convolutions.

Shapes: B batch, H heads, R rank, C kernels per head, n_i samples along axis i.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s4nd.conv import fused
from s4nd.conv.choice import ALGORITHMS, choose
from s4nd.conv.definition import definition
from s4nd.conv.own import OwnConv
from s4nd.conv.pooling import average_pool
from s4nd.ops import BackendError, autodiff, operators
from s4nd.ops.precision import autocast_dtype, without_autocast


def separable_conv(
    u: Tensor,
    kernels: Sequence[Tensor],
    skip: Tensor | None = None,
    *,
    algorithm: str = "auto",
    pool: Sequence[int] | None = None,
) -> Tensor:
    """Depthwise convolution over all axes, with zeros outside, and a skip: y = K * u + skip u; then means over windows, if any.

    Args:
        u: (B, H, n_1, ..., n_D).
        kernels: D tensors (R, C, H, 2n_i - 1), by lag (see conv/lags.py).
        skip: (C, H), or None.
        algorithm: "toeplitz", "fft" (along each axis), "kronecker" (one matrix for all axes), "fused" (in kernels of Triton,
            on CUDA, see conv/fused.py), or "auto", which is "fused" where that runs, and else decides for each axis.
        pool: p_i, window and stride along each axis of an average pooling, as torch's AvgPool; None for none.

    Returns:
        (B, C, H, n_1 // p_1, ..., n_D // p_D), in the dtype of u, or of autocast where that is on, as torch's convolutions.

    Raises:
        BackendError: algorithm="fused" cannot run on this u; the message says why.
    """
    if len(kernels) != u.ndim - 2:
        raise ValueError(f"need a kernel per axis of u (B, H, *axes) = {tuple(u.shape)}, got {len(kernels)} kernels")
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be auto or one of {sorted(ALGORITHMS)}, got {algorithm!r}")
    if pool is not None and (len(pool) != len(kernels) or min(pool) < 1):
        raise ValueError(f"need a window of 1 or more per axis of u (B, H, *axes) = {tuple(u.shape)}, got {pool=}")
    pool = [1] * len(kernels) if pool is None else list(pool)
    device = u.device.type
    if u.dtype != torch.float64 and (dtype := autocast_dtype(device)):  # which leaves float64 alone
        with without_autocast(device):
            return separable_conv(u.to(dtype), kernels, skip, algorithm=algorithm, pool=pool)
    if _is_fused(u, kernels, algorithm):
        form = fused.form(u, kernels, pool)
        inside = pool if form == "plane" else [1] * len(pool)
        y = _own(u, kernels, skip, form, inside, torch.float32)  # in which gradients are summed
        return y if form == "plane" else _pooled(y, pool)
    if _has_own(u):
        return _pooled(_own(u, kernels, skip, algorithm, [1] * len(pool), u.dtype), pool)
    if algorithm == "auto" and torch.compiler.is_exporting():  # a choice by size would bind the program to such sizes
        along = ["depthwise" if u.ndim <= 5 else "toeplitz"] * len(kernels)
        u = u.clone(memory_format=torch.contiguous_format)  # so would a comparison of different layouts
    else:
        along = choose(u.shape[0], u.shape[2:], algorithm)
    return _pooled(definition(u, kernels, skip, along), pool)


def _own(
    u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, algorithm: str, pool: list[int], dtype: torch.dtype
) -> Tensor:
    """By the passes of own.py, to which kernels and skip go in this dtype."""
    skip, kernels = None if skip is None else skip.to(dtype), [k.to(dtype) for k in kernels]
    if torch.compiler.is_compiling() or operators.is_fake(u):
        from s4nd.conv.compiled import conv  # to define an operator takes time that others need not spend

        return conv(u, skip, kernels, algorithm, pool)
    return OwnConv.apply(u, skip, algorithm, pool, *kernels)


def _is_fused(u: Tensor, kernels: Sequence[Tensor], algorithm: str) -> bool:
    """Whether kernels of Triton compute it: asked for, or on CUDA where they run; but not what is to see operations inside."""
    if algorithm == "fused":
        if reason := fused.refusal(u, kernels):
            raise BackendError(f"algorithm='fused' cannot run here: {reason}; 'auto' chooses what can")
    elif algorithm != "auto" or u.device.type != "cuda":
        return False
    if torch.compiler.is_exporting() or autodiff.is_transformed():
        return False
    return algorithm == "fused" or fused.refusal(u, kernels) is None


def _has_own(u: Tensor) -> bool:
    """Whether the forms made for CPUs compute it: full precision, and neither an export nor a transform of torch.func, which
    are to see the operations inside."""
    full = u.device.type == "cpu" and u.dtype in (torch.float32, torch.float64)
    return full and not torch.compiler.is_exporting() and not autodiff.is_transformed()


def _pooled(y: Tensor, pool: list[int]) -> Tensor:
    """Means over windows of y (B, C, H, *axes)."""
    if max(pool) == 1:
        return y
    if y.shape[1] == 1:
        return average_pool(y[:, 0], pool)[:, None]
    return average_pool(y.flatten(1, 2), pool).unflatten(1, y.shape[1:3])
