"""Vandermonde product: the impulse response of a diagonal state-space model.

    k[l] = 2 Re sum_n v_n exp(l x_n),   0 <= l < L

The poles are given by their logarithm x, so that no digit of a slow pole (|x| << 1) is lost before it is raised to the
l-th power. Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.

Shapes: C kernels per head, H heads, N poles (one of each conjugate pair), L length. Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import pairs


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


def powers_by_doubling(x: Tensor, L: int) -> Tensor:
    """exp(l x) for 0 <= l < L: (H, N, 2) -> (H, 2N, L), the N real parts and then the N imaginary parts.

    Samples m..2m-1 are samples 0..m-1 times exp(m x), so an element costs one complex product instead of an exponential,
    a cosine and a sine. exp(m x) is taken afresh at each doubling, never squared, so rounding grows as log2 L and not as L.
    """
    H, N, _ = x.shape
    re, im = x.new_empty(H, N, L), x.new_empty(H, N, L)
    re[..., 0], im[..., 0] = 1.0, 0.0
    m = 1
    while m < L:
        n = min(m, L - m)
        step_re, step_im = pairs.exp(m * x)[:, :, None].unbind(-1)  # (H, N, 1)
        head_re, head_im = re[..., :n], im[..., :n]
        re[..., m : m + n] = head_re * step_re - head_im * step_im
        im[..., m : m + n] = head_re * step_im + head_im * step_re
        m *= 2
    return torch.cat([re, im], dim=1)


class _Vandermonde(torch.autograd.Function):
    """k = W V with W = 2 (Re v, -Im v) and V the powers. The gradient of x is a product with V too, because
    d exp(l x) / dx = l exp(l x): no tensor of V's size is written in the backward pass."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, L: int) -> tuple[Tensor, Tensor]:
        V = powers_by_doubling(x, L)
        return torch.matmul(_weights(v), V).transpose(0, 1), V

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        v, _, _ = inputs
        _, V = output
        ctx.mark_non_differentiable(V)
        ctx.save_for_backward(v, V)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_k: Tensor, _) -> tuple[Tensor, Tensor, None]:
        v, V = ctx.saved_tensors
        grad_k = grad_k.transpose(0, 1)  # (H, C, L)
        l = torch.arange(V.shape[-1], dtype=V.dtype, device=V.device)  # noqa: E741
        both = torch.matmul(torch.cat([grad_k, grad_k * l], dim=1), V.transpose(1, 2))  # (H, 2C, 2N)
        (g_re, g_im), (s_re, s_im) = (half.chunk(2, dim=-1) for half in both.chunk(2, dim=1))
        w_re, w_im = _weights(v).chunk(2, dim=-1)  # (H, C, N)
        grad_v = 2 * pairs.pair(g_re, -g_im).transpose(0, 1)
        grad_x = pairs.pair((w_re * s_re + w_im * s_im).sum(1), (w_im * s_re - w_re * s_im).sum(1))
        return grad_v, grad_x, None


def _weights(v: Tensor) -> Tensor:
    """(C, H, N, 2) -> (H, C, 2N): 2 (Re v, -Im v), so that a real product with the powers gives 2 Re(v exp(l x))."""
    re, im = v.transpose(0, 1).unbind(-1)
    return 2 * torch.cat([re, -im], dim=-1)


def vandermonde_torch(v: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` by powers built by doubling and one matrix product; same arguments and result."""
    return _Vandermonde.apply(v, x, L)[0]
