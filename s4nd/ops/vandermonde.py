"""Vandermonde product: the impulse responses of a diagonal state-space model.

    edge     k_j[l] = 2 Re sum_n w_jn exp(l x_n),   0 <= l < L
    centre   k_j[l] = 2 Re sum_n w_jn (exp((2l-1) x_n) + exp(2l x_n)), and 2 Re sum_n w_jn for l = 0: see ssm/align.py

The poles are given by their logarithm x, so that no digit of a slow pole (|x| << 1) is lost before it is raised to the
l-th power. Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.

Shapes: J responses per head, H heads, N poles (one of each conjugate pair), L length. Complex tensors are real pairs (..., 2).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.ops import autodiff, operators, pairs
from s4nd.ops.blocks import head_blocks
from s4nd.ops.precision import wide


def vandermonde_definition(w: Tensor, x: Tensor, L: int, centre: bool = False) -> Tensor:
    """The sum as it is written, one exponential per (h, n, l): the oracle of every other form.

    Args:
        w: (J, H, N, 2) weights.
        x: (H, N, 2) logarithms of the poles; with more digits than w has, if l x should lose none.
        L: number of samples.
        centre: whether each sample but the first is the sum of two, of half its step.

    Returns:
        (J, H, L) real.
    """
    if centre:
        return centred(vandermonde_definition(w, x, 2 * L))
    l = torch.arange(L, dtype=x.dtype, device=x.device)  # noqa: E741
    powers = pairs.exp(l[:, None, None] * x[:, None]).to(w.dtype).flatten(2)  # (H, L, 2N)
    weights = 2 * pairs.conj(w).transpose(0, 1).flatten(2)  # (H, J, 2N)
    return torch.bmm(weights, powers.mT).transpose(0, 1)


def centred(fine: Tensor) -> Tensor:
    """From samples of half a step, (..., 2L), the last one unused, those of a step, (..., L): k[0] = fine[0],
    k[l] = fine[2l-1] + fine[2l]."""
    # No slices of odd lengths, and no concatenation: they would bind an exported program to sizes like the example's.
    halves = F.pad(fine, (1, -1)).unflatten(-1, (fine.shape[-1] // 2, 2))
    return halves[..., 0] + halves[..., 1]


def vandermonde_torch(w: Tensor, x: Tensor, L: int, centre: bool = False) -> Tensor:
    """`vandermonde_definition` from few exponentials; same arguments and result."""
    if operators.serve(x):
        return _operator(w, x, L, centre)
    if pairs.complex_views(x):
        return _Vandermonde.apply(w, x, L, centre)[0]
    return vandermonde_definition(w, x, L, centre)


class _Vandermonde(torch.autograd.Function):
    @staticmethod
    def forward(w: Tensor, x: Tensor, L: int, centre: bool) -> tuple[Tensor, Tensor]:
        squares = _squares(x, L, centre, w.dtype)
        return _product(w, squares, L, centre), squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        w, x, ctx.L, ctx.centre = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(w, x, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        w, x, squares = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(vandermonde_definition, (w, x, ctx.L, ctx.centre), grad)
        return *_gradients(grad, w, x, squares, ctx.L, ctx.centre), None, None


def _product(w: Tensor, squares: Tensor, L: int, centre: bool) -> Tensor:
    """The centred kernel is, after its first sample, the other one of w (a + a^2) and 2 x, with a = exp(x)."""
    if not centre:
        return _responses(pairs.view(w), squares, L)
    first = 2 * w[..., 0].sum(-1, keepdim=True)
    if L == 1:
        return first
    w = pairs.view(w) * (squares[0] + squares[1]).conj_physical()
    return torch.cat([first, _responses(w, squares[1:], L - 1)], dim=-1)


def _gradients(grad: Tensor, w: Tensor, x: Tensor, squares: Tensor, L: int, centre: bool) -> tuple[Tensor, Tensor]:
    """Of w and x. That of x is a product with the powers too, because d exp(l x) / dx = l exp(l x)."""
    weights = pairs.view(w).transpose(0, 1).conj_physical()[:, None]  # (H, 1, J, N)
    if not centre:
        moments = _moments(grad, squares, L)
        of_w, of_x = moments[:, 0], (weights * moments[:, 1:]).sum((1, 2))
    else:
        a, a2 = squares[0], squares[1] if L > 1 else 0
        moments = _moments(grad[..., 1:], squares[1:], L - 1)
        total, slope = (weights * moments).sum(2).unbind(1)
        of_w, of_x = (a + a2)[:, None] * moments[:, 0], (a + a2) * (2 * slope + total) + a2 * total
        torch.view_as_real(of_w)[..., 0].add_(grad[..., :1].transpose(0, 1), alpha=2)
    return torch.view_as_real(of_w).transpose(0, 1), torch.view_as_real(of_x).to(x.dtype)


def _squares(x: Tensor, L: int, centre: bool, dtype: torch.dtype) -> Tensor:
    """exp(conj x) and its repeated squares, as many as L samples need: (n, H, N) complex, of `dtype`.

    Squared in float64 where there is one: the roundings of all the squares are nothing beside one of float32. Conjugates,
    because Re w a is the real product of w and conj a as pairs, and because gradients are products with conj a.
    """
    re, im = wide(x).unbind(-1)
    n = max(1, (L - 1).bit_length() + centre)
    squares = torch.empty(n, *re.shape, dtype=re.dtype.to_complex(), device=x.device)
    size, first = torch.exp(re), torch.view_as_real(squares[0])
    torch.mul(size, torch.cos(im), out=first[..., 0])
    torch.mul(size, torch.sin(im).neg_(), out=first[..., 1])
    for i in range(1, n):
        torch.mul(squares[i - 1], squares[i - 1], out=squares[i])
    return squares.to(torch.complex64) if dtype == torch.float32 else squares


def _powers(squares: Tensor, n: int) -> Tensor:
    """Powers 0, 1, ..., n - 1 of the first: (h, n, N) complex. Powers m..2m-1 are powers 0..m-1 times the m-th, so that an
    element costs one complex product instead of an exponential, a cosine and a sine."""
    h, N = squares.shape[1:]
    a = squares.new_empty(h, n, N)
    one, *parts = a.split([1, *(min(2**i, n - 2**i) for i in range((n - 1).bit_length()))], dim=1)
    one.fill_(1)
    for part, square in zip(parts, squares[: len(parts), :, None], strict=True):
        torch.mul(a.narrow(1, 0, part.shape[1]), square, out=part)
    return a


def _factors(J: int, L: int) -> tuple[int, int]:
    """S and T with S T >= L; S is a power of two, or L. A lag is s + S t, with S short steps and T long ones: exp(l x) is a
    product of two of S + T powers. The sums over short steps are JT, and 2JT in the backward pass."""
    S = 2 ** max(0, round(math.log2(8 * J * L) / 2))
    return (L, 1) if S >= L else (S, -(-L // S))


def _responses(w: Tensor, squares: Tensor, L: int) -> Tensor:
    """w (J, H, N) complex -> k (J, H, L), as a product of real matrices with 2N rows."""
    (J, H, N), (S, T) = w.shape, _factors(len(w), L)
    weights = w.new_empty(H, J, T, N)
    if T > 1:
        torch.mul(
            w.transpose(0, 1)[:, :, None],
            _powers(squares[S.bit_length() - 1 :], T).conj_physical()[:, None],
            out=weights,
        )
    else:
        weights[:, :, 0].copy_(w.transpose(0, 1))
    weights = torch.view_as_real(weights).view(H, J * T, 2 * N)
    k = weights.new_empty(H, J * T, S)
    for heads in head_blocks(H, 2 * N * S, w.device):
        powers = torch.view_as_real(_powers(squares[:, heads], S)).flatten(2)
        torch.baddbmm(k[heads], weights[heads], powers.mT, beta=0, alpha=2, out=k[heads])
    return k.view(H, J, T * S)[..., :L].transpose(0, 1)


def _moments(grad: Tensor, squares: Tensor, L: int) -> Tensor:
    """2 sum_l g[l] exp(l conj x) and 2 sum_l l g[l] exp(l conj x) of g (J, H, L): (H, 2, J, N) complex."""
    J, H = grad.shape[:2]
    N = squares.shape[-1]
    if not L:
        return grad.new_zeros(H, 2, J, N).to(squares.dtype)
    S, T = _factors(J, L)
    sums, lags = grad.new_empty(H, 2 * J * T, 2 * N), torch.arange(L, dtype=grad.dtype, device=grad.device)
    for heads in head_blocks(H, max(2 * N * S, 2 * J * L), grad.device):
        both = grad.new_empty(sums[heads].shape[0], 2, J, T * S)  # 2 g and 2 l g
        if T * S > L:
            both[..., L:] = 0
        of_k, of_lk = both[..., :L].unbind(1)
        torch.mul(grad[:, heads].transpose(0, 1), 2, out=of_k)
        torch.mul(of_k, lags, out=of_lk)
        powers = torch.view_as_real(_powers(squares[:, heads], S)).flatten(2)
        torch.bmm(both.view(len(both), 2 * J * T, S), powers, out=sums[heads])
    sums = torch.view_as_complex(sums.view(H, 2, J, T, N, 2))
    return (sums * _powers(squares[S.bit_length() - 1 :], T)[:, None, None]).sum(3) if T > 1 else sums[:, :, :, 0]


_operator = operators.operator(
    "vandermonde(Tensor w, Tensor x, SymInt L, bool centre) -> Tensor",
    lambda w, x, L, centre: _product(w, _squares(x, L, centre, w.dtype), L, centre),
    lambda w, x, L, centre: w.new_empty(*w.shape[:2], L),
    heads=(1, 0, None, None),
    out_heads=(1,),
)
_gradients_operator = operators.operator(
    "vandermonde_gradients(Tensor grad, Tensor w, Tensor x, SymInt L, bool centre) -> (Tensor, Tensor)",
    lambda grad, w, x, L, centre: _gradients(grad, w, x, _squares(x, L, centre, w.dtype), L, centre),
    lambda grad, w, x, L, centre: (w.new_empty(w.shape), x.new_empty(x.shape)),
    heads=(1, 1, 0, None, None),
    out_heads=(1, 0),
)
operators.differentiate(_operator, _gradients_operator)
