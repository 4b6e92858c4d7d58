"""Complex numbers as real pairs: a tensor (..., 2) holds (re, im), as torch.view_as_real lays it out.

Parameters and kernels are kept in this form because complex tensors still trip torch.compile, AMP and DDP.
"""

import torch
from torch import Tensor


def pair(re: Tensor, im: Tensor) -> Tensor:
    """(...), (...) -> (..., 2)."""
    return torch.stack(torch.broadcast_tensors(re, im), dim=-1)


def conj(x: Tensor) -> Tensor:
    """Complex conjugate."""
    re, im = x.unbind(-1)
    return pair(re, -im)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """x y, with broadcasting."""
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return pair(a * c - b * d, a * d + b * c)


def div(x: Tensor, y: Tensor) -> Tensor:
    """x / y, with broadcasting; y must not be zero."""
    return mul(x, conj(y)) / y.square().sum(-1, keepdim=True)


def exp(x: Tensor) -> Tensor:
    """e^x."""
    re, im = x.unbind(-1)
    return torch.exp(re)[..., None] * pair(torch.cos(im), torch.sin(im))


def expm1(x: Tensor) -> Tensor:
    """e^x - 1, without cancellation where x is small: e^a cos b - 1 = (e^a - 1) cos b - 2 sin^2(b/2)."""
    re, im = x.unbind(-1)
    return pair(torch.expm1(re) * torch.cos(im) - 2 * torch.sin(im / 2).square(), torch.exp(re) * torch.sin(im))
