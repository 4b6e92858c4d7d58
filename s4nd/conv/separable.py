"""N-D convolution with K = sum_r k_r^(1) x ... x k_r^(D), and the choice of the algorithm that computes it.

Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces", 2022, arXiv:2210.06583:
the kernel is a (low-rank sum of) tensor products, so its convolution is a (sum of) products of 1-D convolutions.

Shapes: B batch, H heads, R rank, C kernels per head, n_i samples along axis i.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from s4nd.conv.blocked import blocked_conv
from s4nd.conv.fft import fft_conv
from s4nd.conv.kronecker import kronecker_conv
from s4nd.conv.toeplitz import matrix_along, toeplitz_matrix

ALGORITHMS = ("toeplitz", "fft", "kronecker")

# All limits were measured on two CPU cores, forward and backward. An axis of n samples takes the matrix product up to
# SHORT_AXIS, and up to LONG_AXIS if enough rows (images times the other axes) share the n x n matrix, which costs as much to
# build as n rows to multiply. With several axes the matrix products stay in the cache together, and n / 4 rows are enough.
SHORT_AXIS, LONG_AXIS = 32, 256
# Grids of at most ONE_MATRIX samples take one matrix for all axes if so many images share it.
ONE_MATRIX, IMAGES_TO_BUILD = 64, 16
# Multiplications for one image above which a CPU gains by taking blocks one by one: below, starting a product costs more than
# the copies that it spares.
BLOCK_WORK = 2**19


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
        (B, C, H, n_1, ..., n_D).
    """
    return _convolution(u, kernels, skip, algorithm)(u)


def _convolution(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, algorithm: str) -> partial[Tensor]:
    """What computes the convolution, with its operands."""
    if len(kernels) != u.ndim - 2:
        raise ValueError(f"need a kernel per axis of u (B, H, *axes) = {tuple(u.shape)}, got {len(kernels)} kernels")
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be auto or one of {sorted(ALGORITHMS)}, got {algorithm!r}")
    if algorithm == "auto" and torch.compiler.is_exporting():
        algorithm = "toeplitz"  # a choice by size would bind the exported program to sizes like this one's
    if algorithm == "kronecker" or (algorithm == "auto" and _is_tiny(u) and len(u) >= IMAGES_TO_BUILD):
        return partial(kronecker_conv, matrices=_matrices(kernels, u), skip=_cast(skip, u))
    along = [_cheapest(u, axis) if algorithm == "auto" else algorithm for axis in range(2, u.ndim)]
    if "fft" not in along and _in_blocks(u):
        return partial(blocked_conv, matrices=_matrices(kernels, u), skip=_cast(skip, u))
    steps = [
        (matrix_along, *_matrices([k], u)) if name == "toeplitz" else (fft_conv, k)
        for name, k in zip(along, kernels, strict=True)
    ]
    return partial(_axis_by_axis, steps=steps, skip=skip)


def _axis_by_axis(u: Tensor, steps: Sequence[tuple[Callable, Tensor]], skip: Tensor | None) -> Tensor:
    y = u[None, None]  # (R, C, B, H, *axes)
    for axis in range(-1, -len(steps) - 1, -1):
        convolve, operand = steps[axis]
        y = convolve(y, operand, axis, summed=axis == -len(steps))
    # The products may leave the heads first in memory, where every elementwise operation after them would be slow.
    y = y.transpose(0, 1).contiguous()
    if skip is None:
        return y
    return torch.addcmul(y, skip.reshape(*skip.shape, *([1] * len(steps))), u[:, None])


def _matrices(kernels: Sequence[Tensor], u: Tensor) -> list[Tensor]:
    return [toeplitz_matrix(k).to(u.dtype) for k in kernels]


def _cast(skip: Tensor | None, u: Tensor) -> Tensor | None:
    return None if skip is None else skip.to(u.dtype)


def _cheapest(u: Tensor, axis: int) -> str:
    n = u.shape[axis]
    rows = u.numel() // (u.shape[1] * n) * (1 if u.ndim == 3 else 4)
    return "fft" if n > max(SHORT_AXIS, min(rows, LONG_AXIS)) else "toeplitz"


def _is_tiny(u: Tensor) -> bool:
    return u.ndim > 3 and math.prod(u.shape[2:]) <= ONE_MATRIX


def _in_blocks(u: Tensor) -> bool:
    """Whether all axes are taken within a block before the next: on a CPU, unless something else is to see the products."""
    if u.ndim < 4 or u.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return u[0].numel() * max(u.shape[2:]) > BLOCK_WORK
