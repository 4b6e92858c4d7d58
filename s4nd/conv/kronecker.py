"""All axes as one matrix product: the grid's samples in a row, times the Kronecker product of the axes' Toeplitz matrices.

More multiplications than axis by axis, (n_1 n_2)^2 against n_1 n_2 (n_1 + n_2) for each image and head, but in one product of
a size that GEMMs are made for: it wins on the tiny grids of a network's last stage. The heads are taken in blocks small enough
for a CPU's cache, with their matrices, which are never held for all heads at once.

Shapes: R rank, C kernels per head, B batch, H heads, h heads of a block, n_i samples along axis i, n = n_1 ... n_D.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from s4nd.ops import autodiff
from s4nd.ops.blocks import head_blocks


def kronecker_conv(u: Tensor, matrices: Sequence[Tensor], skip: Tensor | None = None) -> Tensor:
    """y = sum_r (T_r^(1) x ... x T_r^(D)) u + skip u.

    Args:
        u: (B, H, n_1, ..., n_D).
        matrices: D tensors (R, C, H, n_i, n_i).
        skip: (C, H) or None.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    blocks = not torch.compiler.is_compiling() and not torch.is_autocast_enabled(u.device.type)
    return (_KroneckerConv.apply if blocks else definition)(u, skip, *matrices)


def definition(u: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
    """The same with the matrices of all heads at once."""
    y = torch.einsum("bhs,chts->bcht", u.flatten(2), reduce(kronecker, matrices).sum(0)).unflatten(-1, u.shape[2:])
    return y if skip is None else torch.addcmul(y, skip.reshape(*skip.shape, *([1] * len(matrices))), u[:, None])


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """(A x B)[i b + j, k b + l] = A[i, k] B[j, l] of each pair of matrices: (..., a, a), (..., b, b) -> (..., a b, a b)."""
    return (A[..., :, None, :, None] * B[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


class _KroneckerConv(torch.autograd.Function):
    @staticmethod
    def forward(u: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
        C = matrices[0].shape[1]
        y = torch.empty_like(u)[:, None] if C == 1 else u.new_empty(len(u), C, *u.shape[1:])
        for heads in _blocks(matrices):
            K = one_matrix([T[:, :, heads] for T in matrices], None if skip is None else skip[:, heads])
            rows = _rows(u[:, heads])
            for c, K_c in enumerate(K):
                y[:, c, heads] = torch.bmm(rows, K_c.mT).transpose(0, 1).unflatten(-1, u.shape[2:])
        return y

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *matrices = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(definition, (u, skip, *matrices), grad)
        of_u, of_skip, *of_T = ctx.needs_input_grad
        grad_u = torch.empty_like(u) if of_u else None
        grad_skip = torch.empty_like(skip) if of_skip else None
        grad_T = [torch.empty_like(T) for T in matrices]
        for heads in _blocks(matrices):
            parts = [T[:, :, heads] for T in matrices]
            grads = [_rows(grad[:, c, heads]) for c in range(grad.shape[1])]  # (h, B, n)
            if of_u:
                K = one_matrix(parts, None if skip is None else skip[:, heads])
                total = torch.bmm(grads[0], K[0])
                for g, K_c in zip(grads[1:], K[1:], strict=True):
                    total.baddbmm_(g, K_c)
                grad_u[:, heads] = total.transpose(0, 1).unflatten(-1, u.shape[2:])
            if of_skip or any(of_T):
                rows = _rows(u[:, heads])
                grad_K = torch.stack([torch.bmm(g.mT, rows) for g in grads])  # (C, h, n, n)
                if of_skip:
                    grad_skip[:, heads] = grad_K.diagonal(dim1=-2, dim2=-1).sum(-1)
                for whole, part in zip(grad_T, _factor_grads(grad_K, parts), strict=True):
                    whole[:, :, heads] = part
        return grad_u, grad_skip, *(g if needed else None for g, needed in zip(grad_T, of_T, strict=True))


def _blocks(matrices: Sequence[Tensor]) -> Iterator[slice]:
    """Heads whose matrices fit the cache, and their gradients beside them."""
    R, C, H, *_ = matrices[0].shape
    n = math.prod(T.shape[-1] for T in matrices)
    return head_blocks(H, 2 * R * C * n * n, matrices[0].device)


def _rows(u: Tensor) -> Tensor:
    """(B, h, n_1, ..., n_D) -> (h, B, n)."""
    return u.flatten(2).transpose(0, 1).contiguous()


def one_matrix(matrices: Sequence[Tensor], skip: Tensor | None = None) -> Tensor:
    """sum_r T_r^(1) x ... x T_r^(D) + skip: D tensors (R, C, h, n_i, n_i), (C, h) -> (C, h, n, n)."""
    K = reduce(kronecker, matrices)
    K = K.view(K.shape[1:]) if len(K) == 1 else K.sum(0)
    if skip is not None:
        K = K.clone() if len(matrices) == 1 else K
        K.diagonal(dim1=-2, dim2=-1).add_(skip[..., None])
    return K


def _factor_grads(grad: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """Gradients of the factors, given that of their product, which is the same for every r: D tensors (R, C, h, n_i, n_i)."""
    if len(parts) == 1:
        return [grad.expand_as(parts[0])]
    *before, B = parts
    A = reduce(kronecker, before)
    a, b = A.shape[-1], B.shape[-1]
    # (i k) x (j l): one product with either factor
    grad = grad.unflatten(-1, (a, b)).unflatten(-3, (a, b)).transpose(-2, -3).flatten(-2).flatten(-3, -2)
    of_A = torch.matmul(grad, B.flatten(-2)[..., None]).view_as(A)
    of_B = torch.matmul(grad.mT, A.flatten(-2)[..., None]).view_as(B)
    rest = [[g[0] for g in _factor_grads(of_A[r], [T[r : r + 1] for T in before])] for r in range(len(A))]
    return [*(torch.stack(gs) for gs in zip(*rest, strict=True)), of_B]
