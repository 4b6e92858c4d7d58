"""Convolution along one axis as a product with a Toeplitz matrix: plain GEMM, no complex numbers, no padding of the signal."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def toeplitz_matrix(k: Tensor) -> Tensor:
    """T[t, s] = k[t - s] of a kernel by lag: (..., 2n - 1) -> (..., n, n).

    Built by views of n copies of k: rows of length 2n - 1 laid over a sequence of period 2n slip by one sample each. The
    backward pass is then a sum over the copies, and no scatter.
    """
    n = (k.shape[-1] + 1) // 2
    periodic = F.pad(k.flip(-1), (0, 1))[..., None, :].expand(*k.shape[:-1], n, 2 * n)
    return periodic.flatten(-2)[..., : n * (2 * n - 1)].unflatten(-1, (n, 2 * n - 1))[..., n - 1 :]


def toeplitz_conv(u: Tensor, k: Tensor, axis: int) -> Tensor:
    """Convolve u along one axis, with zeros outside.

    Args:
        u: (R, C, H, ...); R or C may be 1 and then broadcast against the kernel.
        k: (R, C, H, 2n - 1) by lag (see conv/lags.py), n = u.shape[axis].
        axis: negative index into u, one of the dimensions behind H.

    Returns:
        The shape of u, with the kernel's R and C.
    """
    T = toeplitz_matrix(k).to(u.dtype)  # (R, C, H, n, n)
    if axis == -1:
        return torch.matmul(u.flatten(3, -2), T.mT).unflatten(3, u.shape[3:-1])
    axis += u.ndim
    before, after = u.shape[3:axis], u.shape[axis + 1 :]
    y = torch.matmul(T[:, :, :, None], u.reshape(*u.shape[:3], math.prod(before), u.shape[axis], math.prod(after)))
    return y.reshape(*y.shape[:3], *before, -1, *after)
