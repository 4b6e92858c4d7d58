"""Vandermonde product: the impulse responses of a diagonal state-space model, for each pair of a row and a column.

    k_ij[l] = 2 Re sum_n u_in v_jn exp(l x_n),   0 <= l < L

The poles are given by their logarithm x, so that no digit of a slow pole (|x| << 1) is lost before it is raised to the
l-th power. Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893.

Shapes: I rows u (read-outs) and J columns v (inputs) per head, H heads, N poles (one of each conjugate pair), L length, h heads
of a block. Complex tensors are real pairs (..., 2).
"""

import math

import torch
from torch import Tensor

from s4nd.ops import autodiff, pairs
from s4nd.ops.blocks import head_blocks


def vandermonde_definition(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """The sum as it is written, one exponential per (h, n, l): the oracle of every other form.

    Args:
        u: (I, H, N, 2) rows.
        v: (J, H, N, 2) columns.
        x: (H, N, 2) logarithms of the poles; with more digits than u and v have, if l x should lose none.
        L: number of samples.

    Returns:
        (I, J, H, L) real.
    """
    powers = pairs.exp(x[:, :, None] * torch.arange(L, dtype=x.dtype, device=x.device)[:, None])  # (H, N, L, 2)
    return 2 * pairs.mul(pairs.mul(u[:, None], v)[:, :, :, :, None], powers.to(u.dtype))[..., 0].sum(-2)


def vandermonde_torch(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` as one matrix product for all functions of a head; same arguments and result.

    For a compiler, which fuses it and takes any L, each power has its exponential; else they are built from few of them, in
    blocks, with a backward pass of its own.
    """
    if pairs.complex_views(x):
        return _Vandermonde.apply(u, v, x, L)
    products = pairs.mul(u[:, None], v).flatten(0, 1)  # (IJ, H, N, 2)
    weights = 2 * pairs.conj(products).transpose(0, 1).flatten(2)  # (H, IJ, 2N)
    l = torch.arange(L, dtype=x.dtype, device=x.device)  # noqa: E741
    powers = pairs.exp(l[:, None, None] * x[:, None]).to(u.dtype).flatten(2)  # (H, L, 2N)
    return torch.bmm(weights, powers.mT).transpose(0, 1).unflatten(0, (len(u), len(v)))


class _Vandermonde(torch.autograd.Function):
    """k = 2 Re(uv V) as a product of real matrices with 2N rows. The gradient of x is a product with V too, because
    d exp(l x) / dx = l exp(l x).

    A lag is s + S t, with S short steps and T long ones: exp(l x) is a product of two of S + T powers, and V is never there.
    """

    @staticmethod
    def forward(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
        S, T = _factors(u, v, L)
        rows, columns = _by_head(u), _by_head(v)
        weights = rows[:, :, None, None] * (2 * columns)[:, None, :, None]  # (H, I, J, T, N)
        if T > 1:
            weights = weights * _powers(_squares(x, S, T, u.dtype), T)[:, None, None]
        weights = _real(weights.conj_physical_()).flatten(1, -2)
        k = u.new_empty(*weights.shape[:2], S)
        squares = _squares(x, 1, S, u.dtype)
        for heads in head_blocks(len(x), weights.shape[-1] * S, x.device):
            torch.bmm(weights[heads], _real(_powers([a[heads] for a in squares], S)).mT, out=k[heads])
        return k.view(-1, len(u), len(v), T * S)[..., :L].movedim(0, 2)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.L = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, v, x = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(vandermonde_definition, (u, v, x, ctx.L), grad)
        (S, T), (H, N, _) = _factors(u, v, ctx.L), x.shape
        both = grad.new_empty(H, 2, len(u), len(v), T * S)  # 2 grad and 2 l grad
        both[..., ctx.L :] = 0
        of_k, of_lk = both[..., : ctx.L].unbind(1)
        torch.mul(grad.movedim(2, 0), 2, out=of_k)
        torch.mul(of_k, torch.arange(ctx.L, dtype=grad.dtype, device=grad.device), out=of_lk)
        both = both.view(H, -1, S)
        sums = u.new_empty(*both.shape[:2], 2 * N)
        squares = _squares(x, 1, S, u.dtype)
        for heads in head_blocks(H, 2 * N * S, x.device):
            torch.bmm(both[heads], _real(_powers([a[heads] for a in squares], S)), out=sums[heads])
        sums = torch.view_as_complex(sums.view(H, 2, len(u), len(v), T, N, 2)).conj_physical_()
        if T > 1:
            sums = sums.mul_(_powers(_squares(x, S, T, u.dtype), T).conj()[:, None, None, None]).sum(4)
        of_products, of_x = sums.view(H, 2, len(u), len(v), N).unbind(1)
        rows, columns = _by_head(u).conj_physical()[:, :, None], _by_head(v).conj_physical()[:, None]
        of_u, of_v = (of_products * columns).sum(2), (of_products * rows).sum(1)
        of_x = ((of_x * rows).sum(1) * columns[:, 0]).sum(1)
        of_u, of_v = (torch.view_as_real(g).transpose(0, 1) for g in (of_u, of_v))
        return of_u, of_v, torch.view_as_real(of_x).to(x.dtype), None


def _factors(u: Tensor, v: Tensor, L: int) -> tuple[int, int]:
    """S and T with S T >= L, which make the sums over short steps, 2IJT of them in the backward pass, as many as these."""
    T = max(1, round(math.sqrt(L / (2 * len(u) * len(v)))))
    return -(-L // T), T


def _by_head(x: Tensor) -> Tensor:
    """(I, H, N, 2) -> (H, I, N) complex."""
    return pairs.view(x).transpose(0, 1)


def _squares(x: Tensor, step: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    """exp(step x) and its repeated squares, as many as powers 0, ..., n - 1 need, or one: each (H, 1, N) complex, of `dtype`.

    Squared in float64, where n roundings are nothing beside one of float32.
    """
    squares = [pairs.view(pairs.exp(step * x.double()))[:, None]]
    for _ in range((n - 1).bit_length() - 1):
        squares.append(squares[-1].square())
    return [a.to(torch.complex64) if dtype == torch.float32 else a for a in squares]


def _powers(squares: list[Tensor], n: int) -> Tensor:
    """Powers 0, 1, ..., n - 1: (h, n, N) complex. Powers m..2m-1 are powers 0..m-1 times the m-th, so that an element
    costs one complex product instead of an exponential, a cosine and a sine."""
    h, _, N = squares[0].shape
    a = squares[0].new_empty(h, n, N)
    a[:, 0] = 1
    for i, square in enumerate(squares[: (n - 1).bit_length()]):
        torch.mul(a[:, : min(2**i, n - 2**i)], square, out=a[:, 2**i : 2 ** (i + 1)])
    return a


def _real(a: Tensor) -> Tensor:
    """(..., N) complex -> (..., 2N)."""
    return torch.view_as_real(a).flatten(-2)
