"""Convolution along one axis as a product with a Toeplitz matrix: a GEMM, no complex numbers, no padding of the signal.

Shapes: R rank, C kernels per head, B batch, H heads, n samples of the axis.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def toeplitz_matrix(k: Tensor) -> Tensor:
    """T[t, s] = k[t - s] of a kernel by lag: (..., 2n - 1) -> (..., n, n).

    Built by views of n copies of k: rows of length 2n - 1 laid over a sequence of period 2n slip by one sample each.
    The backward pass is then a sum over the copies, and no scatter.
    """
    n = (k.shape[-1] + 1) // 2
    periodic = F.pad(k.flip(-1), (0, 1))[..., None, :].expand(*k.shape[:-1], n, 2 * n)
    return periodic.flatten(-2)[..., : n * (2 * n - 1)].unflatten(-1, (n, 2 * n - 1))[..., n - 1 :]


def matrix_along(u: Tensor, T: Tensor, axis: int, *, summed: bool = False) -> Tensor:
    """Apply a matrix along one axis, as one batched product.

    Args:
        u: (R, C, B, H, *axes); R or C may be 1 and then broadcast against the matrix.
        T: (R, C, H, n, n), n = u.shape[axis].
        axis: negative index into u.
        summed: sum over R within the product, which rounds once where the sum of R products would R times.

    Returns:
        (R, C, B, H, *axes), or (C, B, H, *axes) if summed.
    """
    u = u.movedim(axis, -1)
    u = u.expand(len(T), *u.shape[1:]) if summed else u
    return torch.einsum(f"rcbh...s,rchts->{'' if summed else 'r'}cbh...t", u, T).movedim(-1, axis)
