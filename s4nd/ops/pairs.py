"""Complex numbers as real pairs: a tensor (..., 2) holds (re, im), as torch.view_as_real lays it out.

Parameters and kernels are kept in this form because complex tensors still trip torch.compile, AMP and DDP. Where nothing is
compiled or exported, a product or a quotient is taken through a complex view of the same memory: one pass, against four to
eight in real arithmetic.
"""

import torch
from torch import Tensor

from s4nd.ops import autodiff


def pair(re: Tensor, im: Tensor) -> Tensor:
    """(...), (...) -> (..., 2)."""
    return torch.stack(torch.broadcast_tensors(re, im), dim=-1)


def conj(x: Tensor) -> Tensor:
    """Complex conjugate."""
    if complex_views(x):
        return torch.view_as_real(view(x).conj_physical())
    re, im = x.unbind(-1)
    return pair(re, -im)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """x y, with broadcasting."""
    if complex_views(x):
        return torch.view_as_real(view(x) * view(y))
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return pair(a * c - b * d, a * d + b * c)


def div(x: Tensor, y: Tensor) -> Tensor:
    """x / y, with broadcasting; y must not be zero."""
    if complex_views(x):
        return torch.view_as_real(view(x) / view(y))
    return mul(x, conj(y)) / y.square().sum(-1, keepdim=True)


def exp(x: Tensor) -> Tensor:
    """e^x."""
    re, im = x.unbind(-1)
    return torch.exp(re)[..., None] * pair(torch.cos(im), torch.sin(im))


def expm1(x: Tensor) -> Tensor:
    """e^x - 1, without cancellation where x is small."""
    return pair(*expm1_parts(*(part.contiguous() for part in x.unbind(-1))))


def expm1_parts(re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of e^(a + ib) - 1: e^a - 1 - 2 e^a sin^2(b/2) and 2 e^a sin(b/2) cos(b/2)."""
    half, minus_1 = im / 2, torch.expm1(re)
    sin = torch.sin(half)
    along = 2 * (minus_1 + 1) * sin
    return minus_1 - along * sin, along * torch.cos(half)


def complex_views(x: Tensor) -> bool:
    """Whether torch may see this pair as a complex tensor: eager mode, on plain tensors."""
    plain = not (torch.compiler.is_compiling() or autodiff.is_transformed())
    return plain and x.device.type in ("cpu", "cuda")


def view(x: Tensor) -> Tensor:
    """(..., 2) -> (...) complex, the same memory wherever its strides allow it."""
    viewable = x.stride(-1) == 1 and all(s % 2 == 0 for s in (x.storage_offset(), *x.stride()[:-1]))
    return torch.view_as_complex(x if viewable else x.clone(memory_format=torch.contiguous_format))
