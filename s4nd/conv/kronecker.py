"""All axes as one matrix product: the grid's samples in a row, times the Kronecker product of the axes' Toeplitz matrices.

More multiplications than axis by axis, (n_1 n_2)^2 against n_1 n_2 (n_1 + n_2) for each image and head, but in one product of
a size that GEMMs are made for: it wins on the tiny grids of a network's last stage.

Shapes: R rank, C kernels per head, B batch, H heads, n_i samples along axis i.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from s4nd.ops import double_backward


def kronecker_conv(u: Tensor, matrices: Sequence[Tensor], skip: Tensor | None = None) -> Tensor:
    """y = sum_r (T_r^(1) x ... x T_r^(D)) u + skip u.

    Args:
        u: (B, H, n_1, ..., n_D).
        matrices: D tensors (R, C, H, n_i, n_i).
        skip: (C, H) or None.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    K = reduce(kronecker, matrices)  # (R, C, H, n, n), n = n_1 ... n_D
    K = K[0] if len(K) == 1 else K.sum(0)
    rows = u.flatten(2).transpose(0, 1).contiguous()  # (H, B, n)
    y = torch.stack([torch.bmm(rows, K_c.mT).transpose(0, 1) for K_c in K], dim=1).unflatten(-1, u.shape[2:])
    return y if skip is None else torch.addcmul(y, skip.reshape(*skip.shape, *([1] * len(matrices))), u[:, None])


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """A x B of each pair of matrices: (..., a, a), (..., b, b) -> (..., a b, a b)."""
    return definition(A, B) if torch.compiler.is_compiling() else _Kronecker.apply(A, B)


def definition(A: Tensor, B: Tensor) -> Tensor:
    """(A x B)[i b + j, k b + l] = A[i, k] B[j, l]."""
    return (A[..., :, None, :, None] * B[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


class _Kronecker(torch.autograd.Function):
    """The gradient is laid out once, as (i k) x (j l), for one product with either factor; autograd would lay it out twice,
    and as a product and a sum over what it has written."""

    @staticmethod
    def forward(A: Tensor, B: Tensor) -> Tensor:
        return definition(A, B)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        A, B = ctx.saved_tensors
        if double_backward.wanted():
            return double_backward.by_definition(definition, (A, B), grad)
        a, b = A.shape[-1], B.shape[-1]
        grad = grad.unflatten(-1, (a, b)).unflatten(-3, (a, b)).transpose(-2, -3).flatten(-2).flatten(-3, -2)
        return (
            torch.matmul(grad, B.flatten(-2)[..., None]).view_as(A),
            torch.matmul(grad.mT, A.flatten(-2)[..., None]).view_as(B),
        )
