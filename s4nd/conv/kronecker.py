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

from s4nd.conv.layout import like_output
from s4nd.conv.toeplitz import diagonal_sums, toeplitz_matrix
from s4nd.ops.blocks import head_blocks


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """(A x B)[i b + j, k b + l] = A[i, k] B[j, l] of each pair of matrices: (..., a, a), (..., b, b) -> (..., a b, a b)."""
    return (A[..., :, None, :, None] * B[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


def one_matrix(kernels: Sequence[Tensor]) -> Tensor:
    """sum_r T_r^(1) x ... x T_r^(D) of D kernels (R, C, H, 2n_i - 1): (C, H, n, n)."""
    K = reduce(kronecker, [toeplitz_matrix(k) for k in kernels])
    return K[0] if len(K) == 1 else K.sum(0)


def forward(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None) -> Tensor:
    """y = K u + skip u, K the matrix of all axes.

    Args:
        u: (B, H, n_1, ..., n_D).
        kernels: D tensors (R, C, H, 2n_i - 1).
        skip: (C, H) or None.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    C = kernels[0].shape[1]
    y = like_output(u, C)
    for heads in _blocks(kernels):
        rows = _rows(u[:, heads])
        for c, K in enumerate(one_matrix([k[:, :, heads] for k in kernels])):
            product = _product(rows, K.mT, skip, c, heads)
            y[:, c, heads] = product.transpose(0, 1).unflatten(-1, u.shape[2:])
    return y


def backward(
    grad: Tensor, u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of u, skip and the kernels, given that of y; None where `needed` is false."""
    of_u, of_skip, *of_k = needed
    grad_u = torch.empty_like(u) if of_u else None
    grad_skip = torch.empty_like(skip) if of_skip and skip is not None else None
    grad_k = [torch.empty_like(k) for k in kernels]
    for heads in _blocks(kernels):
        grads = [_rows(grad[:, c, heads]) for c in range(grad.shape[1])]  # (h, B, n)
        if grad_u is not None:
            K = one_matrix([k[:, :, heads] for k in kernels])
            total = reduce(torch.add, (_product(g, K[c], skip, c, heads) for c, g in enumerate(grads)))
            grad_u[:, heads] = total.transpose(0, 1).unflatten(-1, u.shape[2:])
        if grad_skip is not None or any(of_k):
            rows = _rows(u[:, heads])
            grad_K = torch.stack([torch.bmm(g.mT, rows) for g in grads])  # (C, h, n, n)
            if grad_skip is not None:
                grad_skip[:, heads] = grad_K.diagonal(dim1=-2, dim2=-1).sum(-1)
            parts = _factor_grads(grad_K, [toeplitz_matrix(k[:, :, heads]) for k in kernels])
            for whole, part in zip(grad_k, parts, strict=True):
                whole[:, :, heads] = diagonal_sums(part)
    return grad_u, grad_skip, *(k if wanted else None for k, wanted in zip(grad_k, of_k, strict=True))


def _blocks(kernels: Sequence[Tensor]) -> Iterator[slice]:
    """Heads whose matrices fit the cache, and their gradients beside them."""
    R, C, H, _ = kernels[0].shape
    n = math.prod((k.shape[-1] + 1) // 2 for k in kernels)
    return head_blocks(H, 2 * R * C * n * n, kernels[0].device)


def _rows(u: Tensor) -> Tensor:
    """(B, h, n_1, ..., n_D) -> (h, B, n)."""
    return u.flatten(2).transpose(0, 1).contiguous()


def _product(rows: Tensor, K: Tensor, skip: Tensor | None, c: int, heads: slice) -> Tensor:
    """rows K + skip rows: (h, B, n). The skip comes last: a large term at the beginning takes the digits of small ones."""
    y = torch.bmm(rows, K)
    return y if skip is None else y.addcmul_(rows, skip[c, heads, None, None])


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
