"""Discretisations of a diagonal state-space model: what one step dt does to the state and to the input.

    x[l] = exp(log_a) x[l-1] + gain B u[l]

Arguments of all: dt (H, 1) or (H, N) step of the trained grid; A (H, N, 2); rate, step of the present grid in steps of the
trained one; fraction, of a present step: 1, or 1/2 for centred kernels. They return log_a, gain: (H, N, 2).
Shapes: H heads, N modes. Complex tensors are real pairs (..., 2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4nd.ops import autodiff, pairs, phi1
from s4nd.ops.phi import value_and_slope

# exp(-80) = 2e-35: a step that forgets this much forgets everything, and 0 * inf stays out of the powers.
LOG_FORGOTTEN = -80.0


def zoh(dt: Tensor, A: Tensor, rate: float = 1.0, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """Zero-order hold: the input is constant over each step. a = exp(dt A), gain = (a - 1) / A."""
    return _discretized(rate * fraction * dt, A, ZOH)


def bilinear(dt: Tensor, A: Tensor, rate: float = 1.0, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """Trapezoidal rule. a = (1 + dt A / 2) / (1 - dt A / 2), gain = dt / (1 - dt A / 2)."""
    return _discretized(rate * fraction * dt, A, BILINEAR)


def dirac(dt: Tensor, A: Tensor, rate: float = 1.0, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """Each sample is an event of unit mass at its instant, shared between the halves of a centred step.
    a = exp(dt A), gain = fraction."""
    x = (rate * fraction * dt)[..., None] * A
    return x, pairs.pair(torch.full_like(x[..., 0], fraction), torch.zeros_like(x[..., 0]))


def asynchronous(dt: Tensor, A: Tensor, rate: float = 1.0, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """Each sample is an event: the state decays over the true interval, the event's gain takes the trained step alone.
    a = exp(rate dt A), gain = (exp(dt A) - 1) / A. Schoene et al., 2024, arXiv:2404.18508. At rate 1 it is zoh."""
    x, gain = zoh(dt, A, fraction=fraction)
    return rate * x, gain


DISCRETIZATIONS: dict[str, Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]] = {
    "zoh": zoh,
    "bilinear": bilinear,
    "dirac": dirac,
    "async": asynchronous,
}


class _Rule(NamedTuple):
    """What a discretisation does to x = dt A, pairs (..., 2): a = exp(log_a), gain = dt phi.

    values(x) are log_a and phi. slopes(x), of complex tensors (...): log_a, phi, its derivative by x, and that of log_a where
    it is not 1.
    """

    values: Callable[[Tensor], tuple[Tensor, Tensor]]
    slopes: Callable[[Tensor], tuple[Tensor, ...]]


def _bilinear_log(re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """log a = 2 artanh w of w = re + i im, written so that a slow mode keeps its digits, |1+w|^2 - |1-w|^2 = 4 Re w, and so
    does a mode near w = -1, which a step forgets."""
    below2, above2 = (1 - re).square() + im.square(), (1 + re).square() + im.square()  # |1 - w|^2, |1 + w|^2
    ratio = 4 * re / below2
    slow = torch.log1p(ratio.clamp(min=-0.5))
    # 0 at w = -1, which makes a = 0, whose logarithm is -inf
    fast = torch.log((above2 / below2).clamp(min=torch.finfo(re.dtype).tiny))
    log_abs = torch.clamp(torch.where(ratio > -0.5, slow, fast) / 2, min=LOG_FORGOTTEN)
    # There the angle means nothing either, and atan2(0, 0) has no gradient.
    along = 1 - re.square() - im.square()
    return log_abs, torch.atan2(2 * im, torch.where((along == 0) & (im == 0), 1.0, along))


def _bilinear_values(x: Tensor) -> tuple[Tensor, Tensor]:
    re, im = (x / 2).unbind(-1)
    return pairs.pair(*_bilinear_log(re, im)), pairs.pair(1 - re, im) / ((1 - re).square() + im.square())[..., None]


def _bilinear_slopes(x: Tensor) -> tuple[Tensor, ...]:
    w = x / 2
    phi, above = (1 - w).reciprocal_(), 1 + w
    log_a = torch.complex(*_bilinear_log(w.real.contiguous(), w.imag.contiguous()))
    return log_a, phi, (phi * phi).mul_(0.5), (phi / above).masked_fill_(above == 0, 0)


ZOH = _Rule(lambda x: (x, phi1(x)), lambda x: (x, *value_and_slope(x)))
BILINEAR = _Rule(_bilinear_values, _bilinear_slopes)


def _discretized(step: Tensor, A: Tensor, rule: _Rule) -> tuple[Tensor, Tensor]:
    """log_a, gain: step (H, 1) or (H, N), A (H, N, 2)."""
    return _Discretized.apply(step, A, rule)[:2] if pairs.complex_views(A) else _definition(step, A, rule)


def _definition(step: Tensor, A: Tensor, rule: _Rule) -> tuple[Tensor, Tensor]:
    log_a, phi = rule.values(step[..., None] * A)
    return log_a, step[..., None] * phi


class _Discretized(torch.autograd.Function):
    """The derivatives by x come with the values."""

    @staticmethod
    def forward(step: Tensor, A: Tensor, rule: _Rule) -> tuple[Tensor, ...]:
        log_a, phi, *slopes = rule.slopes(step * pairs.view(A))
        return torch.view_as_real(log_a), torch.view_as_real(step * phi), phi, *slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        step, A, ctx.rule = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(step, A, *output[2:])

    @staticmethod
    def backward(ctx: Any, of_log_a: Tensor, of_gain: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        step, A, phi, slope, *slope_of_log_a = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(_definition, (step, A, ctx.rule), (of_log_a, of_gain))
        of_log_a, of_gain = pairs.view(of_log_a), pairs.view(of_gain)
        for factor in slope_of_log_a:
            of_log_a = of_log_a * factor.conj()
        of_x = torch.addcmul(of_log_a, step * of_gain, slope.conj())
        of_step = torch.addcmul(pairs.view(A).conj() * of_x, phi.conj(), of_gain).real
        return of_step.sum_to_size(step.shape), torch.view_as_real(step * of_x), None
