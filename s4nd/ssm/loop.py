"""Closing a feedback loop around linear systems that are known by their impulse responses.

Rows are outputs and columns are inputs; the last row is what the loop listens to, the last column where it comes back in, with
the opposite sign, through the mean of a sample and the one before (the trapezoidal rule's). As power series in the delay w,

    k_ij = g_ij - (1 + w)/2 g_iR (1 + (1 + w)/2 g_RR)^-1 g_Rj

truncated to L samples: none depends on a later one. It is the Woodbury identity for one low-rank term (see ssm/dplr.py).

Products and quotients of series are taken at M nodes w of a circle of radius rho < 1. The inverse FFT gives rho^l k[l] plus
what wraps round, about rho^M, and the division by rho^l lifts the rounding noise to eps rho^-L; with M = c L both are
eps^(c / (c+1)) for the rho chosen here.

Shapes: I outputs, J inputs, H heads, L length, M nodes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from s4nd.ops import autodiff, operators, pairs

MAX_OVERSAMPLING = 4


def close_loop(g: Tensor, tol: float) -> Tensor:
    """The responses of the closed loop: (I, J, H, L) -> (I-1, J-1, H, L).

    Args:
        g: real; the loop must be passive, Re (1 + w) g_RR >= 0 for |w| < 1: then nothing is ever divided by less than one.
        tol: wanted size of the wrap-round and of the lifted noise, relative to the kernel; decides the number of nodes
            (c L, c <= 4, so that float32 stops at about 2e-6).
    """
    oversampling = oversampling_for(tol, g.dtype)
    if operators.serve(g):
        return _operator(g, oversampling)
    return _CloseLoop.apply(g, oversampling)[0] if pairs.complex_views(g) else _definition(g, oversampling)


def oversampling_for(tol: float, dtype: torch.dtype) -> int:
    """The least c <= 4 of c L nodes on the circle whose error, eps^(c / (c + 1)), is at most tol."""
    eps = torch.finfo(dtype).eps
    return next((c for c in range(1, MAX_OVERSAMPLING) if eps ** (c / (c + 1)) <= tol), MAX_OVERSAMPLING)


class _Circle(NamedTuple):
    """Power series of L samples by their values at M nodes w: shrink (L,) is rho^l, mean (M/2 + 1,) is (1 + w) / 2;
    the other nodes are their conjugates, if not the `whole` circle is there."""

    shrink: Tensor
    mean: Tensor
    M: int
    whole: bool = False

    def values(self, g: Tensor) -> Tensor:
        return (torch.fft.fft if self.whole else torch.fft.rfft)(g * self.shrink, n=self.M)

    def series(self, values: Tensor) -> Tensor:
        k = torch.fft.ifft(values).real if self.whole else torch.fft.irfft(values, n=self.M)
        return k[..., : self.shrink.shape[0]] / self.shrink


def _circle(like: Tensor, M: int, whole: bool = False) -> _Circle:
    L = like.shape[-1]
    log_rho = math.log(torch.finfo(like.dtype).eps) / (L + M)
    where = dict(dtype=like.dtype, device=like.device)
    angle = torch.arange(M if whole else M // 2 + 1, **where) * (-2 * math.pi / M)
    half_rho = 0.5 * torch.exp(torch.full_like(angle, log_rho))
    mean = torch.complex(0.5 + half_rho * torch.cos(angle), half_rho * torch.sin(angle))
    return _Circle(torch.exp(log_rho * torch.arange(L, **where)), mean, M, whole)


def _definition(g: Tensor, oversampling: int) -> Tensor:
    # All nodes: the half of a real transform would bind an exported program to lengths like the example's.
    circle = _circle(g, oversampling * g.shape[-1], whole=True)
    into = circle.values(g[:, -1]) * circle.mean  # (I, H, M)
    heard = circle.values(g[-1, :-1]) / (1 + into[-1])  # (J-1, H, M)
    return g[:-1, :-1] - circle.series(into[:-1, None] * heard)


class _CloseLoop(torch.autograd.Function):
    @staticmethod
    def forward(g: Tensor, oversampling: int) -> tuple[Tensor, ...]:
        return _closed(g, oversampling)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        g, ctx.oversampling = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, *output[1:])

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        g, *saved = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(_definition, (g, ctx.oversampling), grad)
        return _gradient(grad, *saved), None


def _closed(g: Tensor, oversampling: int) -> tuple[Tensor, ...]:
    """The closed loop, and what its backward pass needs."""
    circle = _circle(g, -(-oversampling * g.shape[-1] // 4) * 4)  # a multiple of four transforms faster
    into = circle.values(g[:, -1]).mul_(circle.mean)
    gain = (1 + into[-1]).reciprocal_()
    heard = circle.values(g[-1, :-1]).mul_(gain)
    return g[:-1, :-1] - circle.series(into[:-1, None] * heard), into, gain, heard, circle.shrink, circle.mean


def _gradient(grad: Tensor, into: Tensor, gain: Tensor, heard: Tensor, shrink: Tensor, mean: Tensor) -> Tensor:
    """The transpose of a product with a causal series is the same product, of what is reversed in time."""
    circle = _Circle(shrink, mean, 2 * (mean.shape[0] - 1))
    of_g = grad.new_empty(len(grad) + 1, grad.shape[1] + 1, *grad.shape[2:])
    reverse = circle.values(grad.flip(-1))  # (I-1, J-1, H, M/2 + 1)
    of_heard = (reverse * into[:-1, None]).sum(0).mul_(gain)
    of_into = torch.cat([-(reverse * heard).sum(1), (of_heard * heard).sum(0, keepdim=True)]).mul_(circle.mean)
    of_g[:-1, :-1] = grad
    of_g[:, -1] = circle.series(of_into).flip(-1)
    of_g[-1, :-1] = circle.series(of_heard).neg_().flip(-1)
    return of_g


_operator = operators.operator(
    "close_loop(Tensor g, int oversampling) -> Tensor",
    lambda g, oversampling: _closed(g, oversampling)[0],
    lambda g, oversampling: g.new_empty(len(g) - 1, g.shape[1] - 1, *g.shape[2:]),
    heads=(2, None),
    out_heads=(2,),
)
_gradient_operator = operators.operator(
    "close_loop_gradient(Tensor grad, Tensor g, int oversampling) -> Tensor",
    lambda grad, g, oversampling: _gradient(grad, *_closed(g, oversampling)[1:]),
    lambda grad, g, oversampling: g.new_empty(g.shape),
    heads=(2, 2, None),
    out_heads=(2,),
)
operators.differentiate(_operator, _gradient_operator)
