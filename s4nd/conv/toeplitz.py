"""Convolution along one axis as a product with a Toeplitz matrix: a GEMM, no complex numbers, no padding of the signal.

Shapes: R rank, C kernels per head, B batch, H heads, n samples of the axis; a block of a signal is (h, ..., n, ...), h heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.conv.choice import NARROW
from s4nd.ops import autodiff


def toeplitz_matrix(k: Tensor) -> Tensor:
    """T[t, s] = k[t - s] of a kernel by lag: (..., 2n - 1) -> (..., n, n)."""
    n = (k.shape[-1] + 1) // 2
    # A graph with an unfolding is bound to its size, and vmap has no rule for its backward pass.
    if torch.compiler.is_compiling() or autodiff.is_transformed():
        t = torch.arange(n, device=k.device)
        return k[..., t[:, None] - t + (n - 1)]
    return k.unfold(-1, n, 1).flip(-1)


def diagonal_sums(T: Tensor) -> Tensor:
    """k[l] = sum_{t - s = l} T[t, s], the transpose of `toeplitz_matrix`: (..., n, n) -> (..., 2n - 1)."""
    n = T.shape[-1]
    slipped = F.pad(T, (n - 1, 0)).flatten(-2)
    return F.pad(slipped, (0, n)).unflatten(-1, (n, 2 * n)).sum(-2)[..., :-1].flip(-1)


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


class Toeplitz:
    """The matrices of a block's heads, from kernels by lag (h, 2n - 1), along axis number i of the signal.

    A block of a signal is (h, n_1, ..., n_{D-1}, B, n_D).
    """

    def __init__(self, k: Tensor):
        self.T = toeplitz_matrix(k)

    def __call__(self, x: Tensor, axis: int, out: Tensor, *, add: bool = False) -> Tensor:
        """T x, written to or added to `out`."""
        return _apply(self.T, x, axis, out, add)

    def adjoint(self, g: Tensor, axis: int, out: Tensor, *, add: bool = False) -> Tensor:
        """The same with the transposed matrix."""
        return _apply(self.T.mT, g, axis, out, add)

    def kernel_grad(self, g: Tensor, x: Tensor, axis: int) -> Tensor:
        """Gradient of the kernel (h, 2n - 1), where g is that of T x."""
        if _is_last(x, axis):
            return diagonal_sums(torch.bmm(_rows(g).mT, _rows(x)))
        return diagonal_sums(torch.bmm(_columns(g, axis), _columns(x, axis).mT))


def _apply(T: Tensor, x: Tensor, axis: int, out: Tensor, add: bool) -> Tensor:
    last = _is_last(x, axis)
    if last and x.shape[-1] <= NARROW:
        y = torch.bmm(T, _rows(x).mT).mT.unflatten(1, x.shape[1:-1])
        return out.add_(y) if add else out.copy_(y)
    if axis > 0 and not last:
        y = torch.bmm(T, _columns(x, axis)).view(x.movedim(axis + 1, 1).shape).movedim(1, axis + 1)
        return out.add_(y) if add else out.copy_(y)
    target, pair = (_rows(out), (_rows(x), T.mT)) if last else (_columns(out, 0), (T, _columns(x, 0)))
    if add:
        target.baddbmm_(*pair)
    else:
        torch.bmm(*pair, out=target)
    return out


def _is_last(x: Tensor, axis: int) -> bool:
    return axis == x.ndim - 3


def _rows(x: Tensor) -> Tensor:
    """(h, all other axes, n_D), a view."""
    return x.view(len(x), -1, x.shape[-1])


def _columns(x: Tensor, axis: int) -> Tensor:
    """(h, n, all other axes) for an axis but the last: a view for the first axis. For one between others a copy, which costs
    less than a product for each index before it."""
    return x.movedim(axis + 1, 1).flatten(2)
