"""Convolution along one axis as a product with a Toeplitz matrix: GEMMs, no complex numbers, no padding of the signal.

Shapes: R rank, C kernels per head, B batch, H heads, n samples of the axis; X and Y stand for the other axes, flattened.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Multiplications for one image above which a CPU gains by taking the images one by one: below, starting a product costs
# more than the copies that it spares.
BLOCK_WORK = 2**21


def toeplitz_matrix(k: Tensor) -> Tensor:
    """T[t, s] = k[t - s] of a kernel by lag: (..., 2n - 1) -> (..., n, n).

    Built by views of n copies of k: rows of length 2n - 1 laid over a sequence of period 2n slip by one sample each.
    The backward pass is then a sum over the copies, and no scatter.
    """
    n = (k.shape[-1] + 1) // 2
    periodic = F.pad(k.flip(-1), (0, 1))[..., None, :].expand(*k.shape[:-1], n, 2 * n)
    return periodic.flatten(-2)[..., : n * (2 * n - 1)].unflatten(-1, (n, 2 * n - 1))[..., n - 1 :]


def toeplitz_conv(u: Tensor, k: Tensor, axis: int) -> Tensor:
    """Convolve u along one axis, with zeros outside.

    Args:
        u: (R, C, B, H, *axes); R or C may be 1 and then broadcast against the kernel.
        k: (R, C, H, 2n - 1) by lag (see conv/lags.py), n = u.shape[axis].
        axis: negative index into u.

    Returns:
        (R, C, B, H, *axes).
    """
    T = toeplitz_matrix(k)  # (R, C, H, n, n)
    axis += u.ndim
    before, after = u.shape[4:axis], u.shape[axis + 1 :]
    v = u.reshape(*u.shape[:4], math.prod(before), u.shape[axis], math.prod(after))
    blocked = u.device.type == "cpu" and u.shape[3] * v[0, 0, 0, 0].numel() * v.shape[-2] > BLOCK_WORK
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(u.device.type)
    y = _Blocked.apply(v, T.to(u.dtype)) if blocked and not plain else matmul(v, T)
    return y.reshape(*y.shape[:4], *before, -1, *after)


def matmul(u: Tensor, T: Tensor) -> Tensor:
    """u (R, C, B, H, X, n, Y), T (R, C, H, n, n) -> (R, C, B, H, X, n, Y), as one batched product."""
    if u.shape[-1] == 1:
        return torch.einsum("rcbhxs,rchts->rcbhxt", u[..., 0], T.to(u.dtype))[..., None]
    return torch.einsum("rcbhxsy,rchts->rcbhxty", u, T.to(u.dtype))


class _Blocked(torch.autograd.Function):
    """`matmul` image by image: each product reads and writes its block where it lies, batched over heads.

    A single batched product would first copy the signal to put the heads first, or the matrices once per image; on a CPU
    these copies cost more than the products.
    """

    @staticmethod
    def forward(ctx, u: Tensor, T: Tensor) -> Tensor:
        ctx.save_for_backward(u, T)
        return _apply_blocks(u, T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, T = ctx.saved_tensors
        grad = grad.contiguous()
        grad_u = grad_T = None
        if ctx.needs_input_grad[0]:
            grad_u = _apply_blocks(grad, T.mT).sum_to_size(u.shape)
        if ctx.needs_input_grad[1]:
            grad_T = _outer_blocks(grad, u)
        return grad_u, grad_T


def _apply_blocks(u: Tensor, T: Tensor) -> Tensor:
    u = u.contiguous()
    R, C = T.shape[:2]
    y = u.new_empty(R, C, *u.shape[2:])
    for r, c in itertools.product(range(R), range(C)):
        for source, target in zip(_blocks(u, r, c), _blocks(y, r, c), strict=True):
            if u.shape[-1] == 1:
                torch.bmm(source[..., 0], T[r, c].mT, out=target[..., 0])  # (H, X, n)
            else:
                torch.bmm(T[r, c], source[:, 0], out=target[:, 0])  # (H, n, Y)
    return y


def _outer_blocks(grad: Tensor, u: Tensor) -> Tensor:
    """dT[t, s] = sum over images, X and Y of grad[t] u[s]: (R, C, H, n, n)."""
    u = u.contiguous()
    R, C, _, H, _, n, Y = grad.shape
    grad_T = grad.new_zeros(R, C, H, n, n)
    for r, c in itertools.product(range(R), range(C)):
        for g, v in zip(_blocks(grad, r, c), _blocks(u, r, c), strict=True):
            if Y == 1:
                torch.baddbmm(grad_T[r, c], g[..., 0].mT, v[..., 0], out=grad_T[r, c])
            else:
                torch.baddbmm(grad_T[r, c], g[:, 0], v[:, 0].mT, out=grad_T[r, c])
    return grad_T


def _blocks(u: Tensor, r: int, c: int):
    """Views of u that one product takes: an image (H, X, n, 1) along the last axis, else each slice (H, 1, n, Y)."""
    images = u[r if u.shape[0] > 1 else 0, c if u.shape[1] > 1 else 0]
    if u.shape[-1] == 1:
        return images.unbind(0)
    return [image[:, x : x + 1] for image in images.unbind(0) for x in range(u.shape[4])]
