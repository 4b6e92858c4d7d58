"""Vandermonde product: the impulse response of a diagonal state-space model.

    k[l] = 2 Re sum_n v_n exp(l x_n),   0 <= l < L

The poles are given by their logarithm x, so that no digit of a slow pole (|x| << 1) is lost before it is raised to the
l-th power. Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.

Shapes: C kernels per head, H heads, N poles (one of each conjugate pair), L length. Complex tensors are real pairs (..., 2).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from s4nd.ops import double_backward, pairs
from s4nd.ops.blocks import head_blocks


def vandermonde_definition(v: Tensor, x: Tensor, L: int) -> Tensor:
    """The sum as it is written, one exponential per (h, n, l): the oracle of every other form.

    Args:
        v: (C, H, N, 2) weights.
        x: (H, N, 2) logarithms of the poles.
        L: number of samples.

    Returns:
        (C, H, L) real.
    """
    powers = pairs.exp(x[:, :, None] * torch.arange(L, dtype=x.dtype, device=x.device)[:, None])  # (H, N, L, 2)
    return 2 * pairs.mul(v[:, :, :, None], powers)[..., 0].sum(-2)


def powers_by_definition(x: Tensor, L: int) -> Tensor:
    """exp(l x) for 0 <= l < L, with an exponential for each element: (H, N, 2) -> (H, L, 2N)."""
    l = torch.arange(L, dtype=x.dtype, device=x.device)  # noqa: E741
    return pairs.exp(l[:, None, None] * x[:, None]).flatten(2)


def powers_by_doubling(x: Tensor, L: int) -> Iterator[tuple[slice, Tensor]]:
    """The same for one block of heads after the other: the heads, and their powers (h, L, 2N).

    Samples m..2m-1 are samples 0..m-1 times exp(m x), so an element costs one complex product instead of an exponential,
    a cosine and a sine. exp(m x) is taken afresh at each doubling, never squared, so rounding grows as log2 L and not as L.
    """
    H, N, _ = x.shape
    doublings = (L - 1).bit_length()
    m = 2 ** torch.arange(doublings, dtype=x.dtype, device=x.device)
    steps = pairs.view(pairs.exp(m[:, None, None, None, None] * x[:, None]))  # (doublings, H, 1, N)
    for heads in head_blocks(H, 2 * N * L, x.device):
        V = x.new_empty(len(x[heads]), L, N, 2)
        a = pairs.view(V)
        a[:, 0] = 1
        for i in range(doublings):
            torch.mul(a[:, : min(2**i, L - 2**i)], steps[i, heads], out=a[:, 2**i : 2 ** (i + 1)])
        yield heads, V.flatten(2)


def vandermonde_torch(v: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` as one matrix product for all functions of a head; same arguments and result.

    For a compiler, which fuses it and takes any L, each power has its exponential; else they are built by doubling, in
    blocks, with a backward pass of its own.
    """
    if pairs.complex_views(x):
        return _Vandermonde.apply(v, x, L)
    return torch.bmm(_weights(v), powers_by_definition(x, L).mT).transpose(0, 1)


class _Vandermonde(torch.autograd.Function):
    """k = 2 Re(v V) as a product of real matrices with 2N rows. The gradient of x is a product with V too, because
    d exp(l x) / dx = l exp(l x)."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, L: int) -> Tensor:
        C, H, _, _ = v.shape
        weights, k = _weights(v), v.new_empty(H, C, L)
        for heads, V in powers_by_doubling(x, L):
            torch.bmm(weights[heads], V.mT, out=k[heads])
        return k.transpose(0, 1)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        v, x, ctx.L = inputs
        ctx.save_for_backward(v, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        v, x = ctx.saved_tensors
        if double_backward.wanted():
            return double_backward.by_definition(vandermonde_definition, (v, x, ctx.L), grad)
        C, H, N, _ = v.shape
        grad = grad.transpose(0, 1)  # (H, C, L)
        both = torch.cat([grad, grad * torch.arange(ctx.L, dtype=v.dtype, device=v.device)], dim=1)
        sums = v.new_empty(H, 2 * C, 2 * N)
        for heads, V in powers_by_doubling(x, ctx.L):
            torch.bmm(both[heads], V, out=sums[heads])
        of_k, of_lk = sums.unflatten(-1, (N, 2)).transpose(0, 1).chunk(2)  # (C, H, N, 2)
        return 2 * pairs.conj(of_k), 2 * pairs.conj(pairs.mul(v, of_lk).sum(0)), None


def _weights(v: Tensor) -> Tensor:
    """(C, H, N, 2) -> (H, C, 2N): 2 (Re v, -Im v), so that 2 Re(v a) is a real product with (Re a, Im a)."""
    return 2 * pairs.conj(v).transpose(0, 1).flatten(2)
