"""Closing a feedback loop around linear systems that are known by their impulse responses.

Of outputs i and inputs j, g_iR are the responses of the outputs to what the loop feeds in, g_Rj those of what the loop listens
to, which comes back in with the opposite sign, through the mean of a sample and the one before (the trapezoidal rule's). As
power series in the delay w, a closed loop's responses are the open loop's less

    g_iR m (1 + m g_RR)^-1 g_Rj,   m = (1 + w) / 2

truncated to L samples: none depends on a later one. It is the Woodbury identity for one low-rank term (see ssm/dplr.py).

Products and quotients of series are taken at M nodes w of a circle of radius rho < 1. The inverse FFT gives rho^l k[l] plus
what wraps round, about rho^M, and the division by rho^l lifts the rounding noise to eps rho^-L; with M = c L both are
eps^(c / (c+1)) for the rho chosen here. Values on the circle are in float64 where there is one, since they are what is lifted;
the responses need no more digits than the result.

Of a kernel with `centre` (see ssm/align.py), the sums of samples 2j - 1 and 2j are every second sample of (1 + w) times the
series, whose values are the means of those at opposite nodes.

Shapes: I outputs, J inputs, H heads, L length, M nodes, of which M/2 + 1 are kept, the others being their conjugates.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4nd.ops import autodiff, centred, operators, pairs
from s4nd.ops.blocks import head_blocks
from s4nd.ops.precision import wide, widest

MAX_OVERSAMPLING = 4


def close_loop(g: Tensor, tol: float) -> Tensor:
    """The responses of the closed loop, (I+1, J+1, H, L) -> (I, J, H, L): the last row and column are the loop's."""
    return g[:-1, :-1] - through_loop(torch.cat([g[:, -1], g[-1, :-1]]), len(g) - 1, tol)


def through_loop(g: Tensor, outputs: int, tol: float, centre: bool = False) -> Tensor:
    """What a closed loop takes away from the open loop's responses: (I, J, H, L), or (I, J, H, L/2) centred.

    Args:
        g: (I + 1 + J, H, L) real: g_iR, g_RR and g_Rj; the loop must be passive, Re (1 + w) g_RR >= 0 for |w| < 1: then
            nothing is ever divided by less than one.
        outputs: I.
        tol: wanted size of the wrap-round and of the lifted noise, relative to the kernel; decides the number of nodes
            (c L, c <= 4, so that devices without float64 stop at about 2e-6).
        centre: from an even L samples of half a step, k[0] = fine[0] and k[j] = fine[2j-1] + fine[2j].
    """
    oversampling = oversampling_for(tol, _dtype(g))
    if operators.serve(g):
        return _operator(g, outputs, oversampling, centre)
    if pairs.complex_views(g):
        return _ThroughLoop.apply(g, outputs, oversampling, centre)
    return _definition(g, outputs, oversampling, centre)


def oversampling_for(tol: float, dtype: torch.dtype) -> int:
    """The least c <= 4 of c L nodes on the circle whose error, eps^(c / (c + 1)), is at most tol."""
    eps = torch.finfo(dtype).eps
    for c in range(1, MAX_OVERSAMPLING):  # the compiler of torch 2.7 knows no `next` of a generator
        if eps ** (c / (c + 1)) <= tol:
            return c
    return MAX_OVERSAMPLING


def _definition(g: Tensor, outputs: int, oversampling: int, centre: bool = False) -> Tensor:
    # All nodes: the half of a real transform would bind an exported program to lengths like the example's.
    L, M = g.shape[-1], oversampling * g.shape[-1]
    log_rho, angle = _log_rho(L, M, g), _angles(M, M, g)
    mean, shrink = _mean(log_rho, angle), _shrink(log_rho, L, g)
    values = torch.fft.fft(wide(g) * shrink, n=M)
    heard = values[outputs + 1 :] * mean / (1 + mean * values[outputs])  # (J, H, M)
    back = (torch.fft.ifft(values[:outputs, None] * heard).real[..., :L] / shrink).to(g.dtype)
    return centred(back) if centre else back


def _dtype(g: Tensor) -> torch.dtype:
    """Of the values of g on the circle."""
    return torch.promote_types(g.dtype, widest(g.device))


def _log_rho(L: int, M: int, like: Tensor) -> float:
    return math.log(torch.finfo(_dtype(like)).eps) / (L + M)


def _angles(n: int, M: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=_dtype(like), device=like.device) * (-2 * math.pi / M)


def _mean(log_rho: float, angle: Tensor) -> Tensor:
    """(1 + w) / 2 at the nodes w of these angles."""
    half_rho = 0.5 * torch.exp(torch.full_like(angle, log_rho))
    return torch.complex(0.5 + half_rho * torch.cos(angle), half_rho * torch.sin(angle))


def _shrink(log_rho: float, L: int, like: Tensor) -> Tensor:
    """rho^l, (L,)."""
    return torch.exp(log_rho * torch.arange(L, dtype=_dtype(like), device=like.device))


class _Circle(NamedTuple):
    """Power series of L samples by their values at M nodes; a multiple of four transforms faster, and halves twice.

    Series that run backwards, as gradients of causal products do, are weighted the other way round: their values are those
    of rho^(L-1-l) x[l], and meet the conjugates of the others.
    """

    shrink: Tensor
    mean: Tensor
    M: int

    def values(self, x: Tensor) -> Tensor:
        # Of two dtypes a product takes longer than of one.
        return torch.fft.rfft(x.to(self.shrink.dtype, copy=True).mul_(self.shrink), n=self.M)

    def series(self, values: Tensor) -> Tensor:
        return torch.fft.irfft(values, n=self.M)[..., : len(self.shrink)].div_(self.shrink)

    def backward_values(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x * self.shrink.flip(0), n=self.M)

    def backward_series(self, values: Tensor) -> Tensor:
        return torch.fft.irfft(values, n=self.M)[..., : len(self.shrink)].div_(self.shrink.flip(0))

    def centred_series(self, values: Tensor) -> Tensor:
        """From values of (1 + w) / 2 times the series, every second sample of (1 + w) times it: (..., L / 2)."""
        quarter = self.M // 4
        folded = values[..., quarter:].flip(-1).conj_physical_().add_(values[..., : quarter + 1])
        return torch.fft.irfft(folded, n=self.M // 2)[..., : len(self.shrink) // 2].div_(self.shrink[::2])

    def centred_backward_values(self, x: Tensor) -> Tensor:
        """Its transpose, but for the factor: of x (..., L / 2) at samples 2j, with nothing between."""
        half = torch.fft.rfft(x * self.shrink.flip(0)[::2], n=self.M // 2)
        return torch.cat([half, half[..., :-1].flip(-1).conj_physical_()], dim=-1)


def _circle(like: Tensor, oversampling: int) -> _Circle:
    L = like.shape[-1]
    M = -(-oversampling * L // 4) * 4
    log_rho = _log_rho(L, M, like)
    return _Circle(_shrink(log_rho, L, like), _mean(log_rho, _angles(M // 2 + 1, M, like)), M)


def _values(g: Tensor, outputs: int, circle: _Circle) -> Iterator[Tensor]:
    """Block after block of heads, as in `_blocks`, (I + 1 + J, h, M/2 + 1): values of g_iR, of the loop's gain
    m / (1 + m g_RR), and of g_Rj times the gain."""
    for heads in _blocks(g, circle):
        values = circle.values(g[:, heads])
        gain = values[outputs].mul_(circle.mean).add_(1).reciprocal_().mul_(circle.mean)
        values[outputs + 1 :].mul_(gain)
        yield values


def _blocks(g: Tensor, circle: _Circle) -> Iterator[slice]:
    return head_blocks(g.shape[1], 2 * len(g) * circle.M, g.device)


def _parts(values: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    return values[:outputs], values[outputs], values[outputs + 1 :]


class _ThroughLoop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, outputs: int, oversampling: int, centre: bool) -> Tensor:
        kept: list[Tensor] | None = [] if ctx.needs_input_grad[0] else None
        k = _product(g, outputs, oversampling, centre, kept)
        ctx.numbers = outputs, oversampling, centre
        ctx.save_for_backward(g, *(kept or []))
        return k

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, *kept = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(_definition, (g, *ctx.numbers), grad)
        outputs, oversampling, centre = ctx.numbers
        return _gradient(grad, g, outputs, oversampling, centre, kept), None, None, None


def _product(g: Tensor, outputs: int, oversampling: int, centre: bool, kept: list | None = None) -> Tensor:
    """`kept`, if there is one, receives what `_values` gives."""
    circle, (_, H, L) = _circle(g, oversampling), g.shape
    k = g.new_empty(outputs, len(g) - outputs - 1, H, L // 2 if centre else L)
    for heads, values in zip(_blocks(g, circle), _values(g, outputs, circle), strict=True):
        into, _, heard = _parts(values, outputs)
        if centre:
            k[:, :, heads] = circle.centred_series(into[:, None] * (heard * circle.mean))
        else:
            k[:, :, heads] = circle.series(into[:, None] * heard)
        if kept is not None:
            kept.append(values)
    return k


def _gradient(
    grad: Tensor, g: Tensor, outputs: int, oversampling: int, centre: bool, kept: list | None = None
) -> Tensor:
    """The transpose of a product with a causal series is the same product of what runs backwards."""
    circle = _circle(g, oversampling)
    of_g = torch.empty_like(g)
    for heads, values in zip(_blocks(g, circle), kept or _values(g, outputs, circle), strict=True):
        into, gain, heard = _parts(torch.conj_physical(values), outputs)
        if centre:
            back = circle.centred_backward_values(grad[:, :, heads]).mul_(2 * circle.mean.conj_physical())
        else:
            back = circle.backward_values(grad[:, :, heads])  # (I, J, h, M/2 + 1)
        of_out = _sum(back * into[:, None], 0).mul_(gain)  # (J, h, M/2 + 1)
        of_loop = _sum(of_out * heard, 0).neg_()
        of_into = _sum(back.mul_(heard), 1)
        of_g[:, heads] = circle.backward_series(torch.cat([of_into, of_loop[None], of_out]))
    return of_g


def _sum(x: Tensor, axis: int) -> Tensor:
    return x.sum(axis) if x.shape[axis] > 1 else x.squeeze(axis)


_operator = operators.operator(
    "through_loop(Tensor g, int outputs, int oversampling, bool centre) -> Tensor",
    _product,
    lambda g, outputs, oversampling, centre: g.new_empty(
        outputs, len(g) - outputs - 1, g.shape[1], g.shape[2] // 2 if centre else g.shape[2]
    ),
    heads=(1, None, None, None),
    out_heads=(2,),
)
_gradient_operator = operators.operator(
    "through_loop_gradient(Tensor grad, Tensor g, int outputs, int oversampling, bool centre) -> Tensor",
    _gradient,
    lambda grad, g, outputs, oversampling, centre: g.new_empty(g.shape),
    heads=(2, 1, None, None, None),
    out_heads=(1,),
)
operators.differentiate(_operator, _gradient_operator)
