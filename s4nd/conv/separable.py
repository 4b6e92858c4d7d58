"""N-D convolution with K = sum_r k_r^(1) x ... x k_r^(D).

Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces", 2022, arXiv:2210.06583:
the kernel is a (low-rank sum of) tensor products, so its convolution is a (sum of) products of 1-D convolutions.

Shapes: B batch, H heads, R rank, C kernels per head, n_i samples along axis i.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s4nd.conv.choice import ALGORITHMS, choose
from s4nd.conv.definition import definition
from s4nd.conv.own import OwnConv
from s4nd.ops import autodiff
from s4nd.ops.precision import autocast_dtype, without_autocast


def separable_conv(
    u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None = None, *, algorithm: str = "auto"
) -> Tensor:
    """Depthwise convolution over all axes, with zeros outside, and a skip: y = K * u + skip u.

    Args:
        u: (B, H, n_1, ..., n_D).
        kernels: D tensors (R, C, H, 2n_i - 1), by lag (see conv/lags.py).
        skip: (C, H), or None.
        algorithm: "toeplitz", "fft" (along each axis), "kronecker" (one matrix for all axes), or "auto", which decides
            for each axis.

    Returns:
        (B, C, H, n_1, ..., n_D), in the dtype of u, or of autocast where that is on, as torch's convolutions.
    """
    if len(kernels) != u.ndim - 2:
        raise ValueError(f"need a kernel per axis of u (B, H, *axes) = {tuple(u.shape)}, got {len(kernels)} kernels")
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be auto or one of {sorted(ALGORITHMS)}, got {algorithm!r}")
    device = u.device.type
    if u.dtype != torch.float64 and (dtype := autocast_dtype(device)):  # which leaves float64 alone
        with without_autocast(device):
            return separable_conv(u.to(dtype), kernels, skip, algorithm=algorithm)
    if _has_own(u):
        skip, kernels = None if skip is None else skip.to(u.dtype), [k.to(u.dtype) for k in kernels]
        if torch.compiler.is_compiling():
            from s4nd.conv.compiled import conv  # to define an operator takes time that others need not spend

            return conv(u, skip, kernels, algorithm)
        return OwnConv.apply(u, skip, algorithm, *kernels)
    if algorithm == "auto" and torch.compiler.is_exporting():  # a choice by size would bind the program to such sizes
        along = ["depthwise" if u.ndim <= 5 else "toeplitz"] * len(kernels)
        u = u.clone(memory_format=torch.contiguous_format)  # so would a comparison of different layouts
    else:
        along = choose(u.shape[0], u.shape[2:], algorithm)
    return definition(u, kernels, skip, along)


def _has_own(u: Tensor) -> bool:
    """Whether the forms made for CPUs compute it: full precision, and neither an export nor a transform of torch.func, which
    are to see the operations inside."""
    full = u.device.type == "cpu" and u.dtype in (torch.float32, torch.float64)
    return full and not torch.compiler.is_exporting() and not autodiff.is_transformed()
