"""Vandermonde product: the impulse response of a diagonal state-space model.

    k[l] = 2 Re sum_n v_n exp(l x_n),   0 <= l < L

The poles are given by their logarithm x, so that no digit of a slow pole (|x| << 1) is lost before it is raised to the
l-th power. Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.

Shapes: C kernels per head, H heads, N poles (one of each conjugate pair), L length. Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import double_backward, pairs


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


def powers(x: Tensor, L: int) -> Tensor:
    """exp(l x) for 0 <= l < L: (H, N, 2) -> (H, L, N, 2)."""
    return powers_by_doubling(x, L) if pairs.complex_views(x) else powers_by_definition(x, L)


def powers_by_definition(x: Tensor, L: int) -> Tensor:
    """An exponential for each element: what a compiler fuses, for any L."""
    l = torch.arange(L, dtype=x.dtype, device=x.device)  # noqa: E741
    return pairs.exp(l[:, None, None] * x[:, None])


def powers_by_doubling(x: Tensor, L: int) -> Tensor:
    """Samples m..2m-1 are samples 0..m-1 times exp(m x), so an element costs one complex product instead of an exponential,
    a cosine and a sine. exp(m x) is taken afresh at each doubling, never squared, so rounding grows as log2 L and not as L.
    """
    H, N, _ = x.shape
    doublings = (L - 1).bit_length()
    m = 2 ** torch.arange(doublings, dtype=x.dtype, device=x.device)
    steps = pairs.view(pairs.exp(m[:, None, None, None, None] * x[:, None]))  # (doublings, H, 1, N)
    V = x.new_empty(H, L, N, 2)
    a = pairs.view(V)
    a[:, 0] = 1
    for i in range(doublings):
        torch.mul(a[:, : min(2**i, L - 2**i)], steps[i], out=a[:, 2**i : 2 ** (i + 1)])
    return V


class _Vandermonde(torch.autograd.Function):
    """k = 2 Re(v V) as a product of real matrices with 2N rows. The gradient of x is a product with V too, because
    d exp(l x) / dx = l exp(l x): no tensor of V's size is written in the backward pass."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, L: int) -> tuple[Tensor, Tensor]:
        V = powers(x, L)
        weights = 2 * pairs.conj(v).transpose(0, 1)  # 2 Re(v a) = 2 (Re v Re a - Im v Im a)
        return torch.bmm(weights.flatten(2), V.flatten(2).mT).transpose(0, 1), V

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        v, x, _ = inputs
        _, V = output
        ctx.mark_non_differentiable(V)
        ctx.set_materialize_grads(False)  # V's own would be zeros of V's size
        ctx.save_for_backward(v, x, V)

    @staticmethod
    def backward(ctx, grad_k: Tensor | None, _) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_k is None:
            return None, None, None
        v, x, V = ctx.saved_tensors
        if double_backward.wanted():
            return double_backward.by_definition(vandermonde_definition, (v, x, V.shape[1]), grad_k)
        grad_k = grad_k.transpose(0, 1)  # (H, C, L)
        l = torch.arange(V.shape[1], dtype=V.dtype, device=V.device)  # noqa: E741
        sums = torch.bmm(torch.cat([grad_k, grad_k * l], dim=1), V.flatten(2)).unflatten(-1, (-1, 2))
        of_k, of_lk = sums.transpose(0, 1).chunk(2)  # (C, H, N, 2)
        return 2 * pairs.conj(of_k), 2 * pairs.conj(pairs.mul(v, of_lk).sum(0)), None


def vandermonde_torch(v: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` by powers built by doubling and one matrix product; same arguments and result."""
    return _Vandermonde.apply(v, x, L)[0]
