"""Discretisations of a diagonal state-space model: what one step dt does to the state and to the input.

    x[l] = exp(log_a) x[l-1] + gain B u[l]

Arguments of all: dt (H, 1) or (H, N) step of the trained grid; A (H, N, 2); rate, step of the present grid in steps of the
trained one; part, of a present step: 1, or 1/2 for centred kernels. They return log_a, gain: (H, N, 2).
Shapes: H heads, N modes. Complex tensors are real pairs (..., 2).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s4nd.ops import pairs, phi1

# exp(-80) = 2e-35: a step that forgets this much forgets everything, and 0 * inf stays out of the powers.
LOG_FORGOTTEN = -80.0


def zoh(dt: Tensor, A: Tensor, rate: float = 1.0, part: float = 1.0) -> tuple[Tensor, Tensor]:
    """Zero-order hold: the input is constant over each step. a = exp(dt A), gain = (a - 1) / A."""
    step = (rate * part * dt)[..., None]
    x = step * A
    return x, step * phi1(x)


def bilinear(dt: Tensor, A: Tensor, rate: float = 1.0, part: float = 1.0) -> tuple[Tensor, Tensor]:
    """Trapezoidal rule. a = (1 + dt A / 2) / (1 - dt A / 2), gain = dt / (1 - dt A / 2).

    log a = 2 artanh(dt A / 2) = 2 artanh w, written so that a slow mode keeps its digits, |1+w|^2 - |1-w|^2 = 4 Re w, and so
    does a mode near w = -1, which a step forgets.
    """
    step = (rate * part * dt)[..., None]
    re, im = (0.5 * step * A).unbind(-1)
    below2 = (1 - re).square() + im.square()  # |1 - w|^2
    ratio = 4 * re / below2
    slow = 0.5 * torch.log1p(ratio.clamp(min=-0.5))
    above2 = (1 + re).square() + im.square()  # 0 at w = -1, which makes a = 0, whose logarithm is -inf
    fast = 0.5 * (torch.log(above2.clamp(min=torch.finfo(re.dtype).tiny)) - torch.log(below2))
    log_abs = torch.clamp(torch.where(ratio > -0.5, slow, fast), min=LOG_FORGOTTEN)
    # There the angle means nothing either, and atan2(0, 0) has no gradient.
    along = 1 - re.square() - im.square()
    angle = torch.atan2(2 * im, torch.where((along == 0) & (im == 0), 1.0, along))
    gain = step * pairs.pair(1 - re, im) / below2[..., None]
    return pairs.pair(log_abs, angle), gain


def dirac(dt: Tensor, A: Tensor, rate: float = 1.0, part: float = 1.0) -> tuple[Tensor, Tensor]:
    """Each sample is an event of unit mass at its instant, shared between the halves of a centred step.
    a = exp(dt A), gain = part."""
    x = (rate * part * dt)[..., None] * A
    return x, pairs.pair(torch.full_like(x[..., 0], part), torch.zeros_like(x[..., 0]))


def asynchronous(dt: Tensor, A: Tensor, rate: float = 1.0, part: float = 1.0) -> tuple[Tensor, Tensor]:
    """Each sample is an event: the state decays over the true interval, the event's gain takes the trained step alone.
    a = exp(rate dt A), gain = (exp(dt A) - 1) / A. Schoene et al., 2024, arXiv:2404.18508. At rate 1 it is zoh."""
    step = (part * dt)[..., None]
    return rate * step * A, step * phi1(step * A)


DISCRETIZATIONS: dict[str, Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]] = {
    "zoh": zoh,
    "bilinear": bilinear,
    "dirac": dirac,
    "async": asynchronous,
}
