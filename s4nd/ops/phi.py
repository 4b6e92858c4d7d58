"""phi_1(x) = (e^x - 1) / x, what a step does to an input that is held over it; 1 at x = 0.

Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import autodiff, pairs


def phi1(x: Tensor) -> Tensor:
    """(..., 2) -> (..., 2), with all digits where x is small, and so in the gradient."""
    return _Phi1.apply(x)[0] if pairs.complex_views(x) else definition(x)


def definition(x: Tensor) -> Tensor:
    """Near 0, where the quotient has no digits left in its derivative, the series up to x^3."""
    small = _is_small(x.square().sum(-1, keepdim=True))
    safe = torch.where(small, torch.ones_like(x), x)
    x2 = pairs.mul(x, x)
    series = x / 2 + x2 / 6 + pairs.mul(x2, x) / 24
    series = pairs.pair(1 + series[..., 0], series[..., 1])
    return torch.where(small, series, pairs.div(pairs.expm1(x), safe))


def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """phi_1 and its derivative (e^x - phi_1) / x of pairs x (..., 2): (...) complex."""
    re, im = (part.contiguous() for part in x.unbind(-1))  # exp, cos and sin are slow on every other number
    square = torch.addcmul(re * re, im, im)
    small = _is_small(square)
    square.masked_fill_(small, 1)
    z, minus_1 = pairs.view(x), torch.complex(*pairs.expm1_parts(re, im))
    inverse = torch.complex(re / square, -im / square)
    phi = minus_1 * inverse
    slope = minus_1.sub_(phi).add_(1).mul_(inverse)
    phi = torch.where(small, _series(z, 1, 1 / 2, 1 / 6, 1 / 24), phi)
    return phi, torch.where(small, _series(z, 1 / 2, 1 / 3, 1 / 8, 1 / 30), slope)


class _Phi1(torch.autograd.Function):
    """The derivative comes with the value: autograd would take each pass of it twice."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        phi, slope = value_and_slope(x)
        return torch.view_as_real(phi), slope

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx, grad: Tensor | None, _) -> Tensor | None:
        if grad is None:
            return None
        x, slope = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(definition, (x,), grad)[0]
        return torch.view_as_real(pairs.view(grad) * slope.conj())


def _series(z: Tensor, *coefficients: float) -> Tensor:
    """sum_k c_k z^k."""
    *rest, last = coefficients
    total = last * z
    for c in reversed(rest[1:]):
        total = total.add_(c).mul_(z)
    return total.add_(rest[0])


def _is_small(square: Tensor) -> Tensor:
    """Where the series' next term, x^4 / 120, is lost beside 1: from |x|^2."""
    return square < (120 * torch.finfo(square.dtype).eps) ** 0.5
