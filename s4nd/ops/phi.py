"""phi_1(x) = (e^x - 1) / x, what a step does to an input that is held over it; 1 at x = 0.

Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import pairs


def phi1(x: Tensor) -> Tensor:
    """(..., 2) -> (..., 2). Near 0, where the quotient has no digits left in its derivative, the series up to x^3."""
    small = _is_small(x.square().sum(-1, keepdim=True))
    safe = torch.where(small, torch.ones_like(x), x)
    x2 = pairs.mul(x, x)
    series = x / 2 + x2 / 6 + pairs.mul(x2, x) / 24
    series = pairs.pair(1 + series[..., 0], series[..., 1])
    return torch.where(small, series, pairs.div(pairs.expm1(x), safe))


def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """phi_1 and its derivative (e^x - phi_1) / x of x (...) complex."""
    re, im = x.real.contiguous(), x.imag.contiguous()  # exp, cos and sin are slow on every other number
    square = torch.addcmul(re * re, im, im)
    small, zero = _is_small(square), square < torch.finfo(square.dtype).tiny / torch.finfo(square.dtype).eps
    square.masked_fill_(zero, 1)
    minus_1 = torch.complex(*pairs.expm1_parts(re, im))
    inverse = torch.complex(re / square, -im / square)
    phi = (minus_1 * inverse).masked_fill_(zero, 1)
    slope = minus_1.sub_(phi).add_(1).mul_(inverse)
    series = (x / 30).add_(1 / 8).mul_(x).add_(1 / 3).mul_(x).add_(1 / 2)
    return phi, torch.where(small, series, slope)


def _is_small(square: Tensor) -> Tensor:
    """Where the series' next term, x^4 / 120, is lost beside 1: from |x|^2."""
    return square < (120 * torch.finfo(square.dtype).eps) ** 0.5
