"""The kernel of a trained grid on another one by fractional powers of its discrete poles.

On the trained grid lag j of a mode is 2 Re c e^(x j), and all that counts of x is e^x: a mode that turns by more than half a
turn in a step cannot be told there from its alias. Fold Im x into [-pi, pi) (a turn less or more changes no lag), and let the
continuous kernel be

    g(t) = 2 Re G e^(y t),   y = x folded,   G such that the integral of g over the cell of lag j is 2 Re c e^(y j),

which holds nothing above the trained grid's Nyquist frequency. At a step of r trained ones lag j is the integral of g over its
cell, r times as wide: of edges [j r, (j + 1) r], of centres [(j - 1/2) r, (j + 1/2) r] and [0, r/2] for lag 0. So at r = 1
every lag is the trained one, but for lag 0 of a centred kernel, which came from the unfolded modes. What g lacks there,

    delta = k[0] - int_0^(1/2) g,

is the answer within the trained pixel, and is held over it: lag j takes the share of [0, 1/2] that its cell covers.

With the a = e^la of half a step that diagonal_kernel has for centres (x = 2 la, c = C b (1 + 1/a)) and z = y / 2, e^z is s a
with s = 1 or -1 by the number of turns: G = 2 C b / phi1(z) for s = 1, 2 z C b / (e^z + 1) for s = -1. Neither can vanish or
blow up: |Im z| <= pi/2. For edges G = C b / phi1(y). Shapes: as of diagonal_kernel; r is a number.
"""

import math

import torch
from torch import Tensor

from s4nd.ops import pairs, phi1, vandermonde
from s4nd.ssm.align import check_align


def folded_kernel(
    log_a: Tensor, b: Tensor, C: Tensor, L: int, rate: float, *, align: str = "edge", backend: str = "auto"
) -> Tensor:
    """The first L samples, at a step of `rate` trained ones, of the kernel whose trained samples `diagonal_kernel` gives.

    Args:
        log_a, b, C: as of `diagonal_kernel` with this alignment, on the trained grid.

    Returns:
        (C, H, L) real.
    """
    check_align(align)
    w = pairs.mul(C, b)
    if align == "edge":
        y, _ = _folded(log_a)
        weights = rate * pairs.mul(w, pairs.div(phi1(rate * y), phi1(y)))
        return vandermonde(weights, rate * y, L, backend=backend)
    y, odd = _folded(2 * log_a)
    z = y / 2
    even_gain = 2 * pairs.div(w, phi1(z).expand_as(w))
    minus_1 = pairs.expm1(z)
    odd_gain = pairs.div(2 * pairs.mul(w, z), pairs.pair(minus_1[..., 0] + 2, minus_1[..., 1]).expand_as(w))
    G = torch.where(odd[..., None], odd_gain, even_gain)
    first = _sum(rate / 2 * pairs.mul(G, phi1(rate * z)))  # (C, H)
    delta = _sum(w) - _sum(pairs.mul(G, phi1(z)) / 2)
    later = rate * pairs.mul(G, pairs.mul(phi1(rate * y), pairs.exp(rate * z)))  # of lag 1, whose cell begins at r / 2
    k = first[..., None]
    if L > 1:
        k = torch.cat([k, vandermonde(later, rate * y, L - 1, backend=backend)], dim=-1)
    return k + delta[..., None] * _pixel(L, rate, k)


def _folded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with the imaginary part in [-pi, pi), and whether it is off by an odd number of turns."""
    re, im = x.unbind(-1)
    turns = torch.floor(im / (2 * math.pi) + 0.5)
    return pairs.pair(re, im - 2 * math.pi * turns), torch.remainder(turns, 2) == 1


def _sum(x: Tensor) -> Tensor:
    """2 Re of the sum over modes: (C, H, N, 2) -> (C, H)."""
    return 2 * x[..., 0].sum(-1)


def _pixel(L: int, rate: float, like: Tensor) -> Tensor:
    """(L,) shares of the half pixel [0, 1/2] of the trained grid."""
    begin = ((torch.arange(L, dtype=like.dtype, device=like.device) - 0.5) * rate).clamp(min=0)
    end = (torch.arange(L, dtype=like.dtype, device=like.device) + 0.5) * rate
    return 2 * (end.clamp(max=0.5) - begin.clamp(max=0.5))
