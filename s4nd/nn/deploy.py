"""An S4ND layer at one fixed grid as plain matrix products: no state-space code, no FFT, no complex number.

    y[b, c, h, m] = sum_r sum_w T_r^(1)[m_1, w_1] ... T_r^(D)[m_D, w_D] u[b, h, w] + D[c, h] u[b, h, m]

T^(i) is the Toeplitz matrix of axis i, with the average pooling after the layer, if there is one, folded in (P T).
On a small grid the sum over the rank, the tensor product and D are one matrix for the whole grid; on a long single axis, where
each channel would have a large matrix, they are numbers between two matrices that all channels share, those of a discrete
Fourier transform in real arithmetic.

Shapes: B batch, H channels, C outputs per input channel (all outputs of the dense layer), R rank, w_i samples along axis i,
m_i along axis i after pooling.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd.conv.toeplitz import toeplitz_matrix
from s4nd.nn.pooling import average_pool

if TYPE_CHECKING:
    from s4nd.nn.s4nd import S4ND

# Up to so many samples the grid takes one matrix. Measured at 8 x 768 x 7 x 7 on one CPU core: 1.7 times faster than axis by
# axis at rank 1, 2.7 times at rank 2; at 14 x 14 it is 4 times slower.
ONE_MATRIX = 64

# Names of the axes in the equations of the products, before and after.
BEFORE, AFTER = "wxyz", "mnpq"


class FusedS4ND(nn.Module):
    """(B, H, n_1, ..., n_D) -> (B, C * H or C, n_1 // p_1, ..., n_D // p_D) at the sizes n_i it was made for.

    Args:
        products: applied one after the other.
        skip: D, (C, H, 1, ..., 1); None if there is none or it is folded into the products.
        size: (n_1, ..., n_D).
        pool: (p_1, ..., p_D), the pooling of the skip.
        depthwise: False for the dense layer, whose products have summed over H.
    """

    def __init__(
        self, products: list[nn.Module], skip: Tensor | None, size: list[int], pool: list[int], depthwise: bool
    ):
        super().__init__()
        self.products = nn.Sequential(*products)
        self.register_buffer("skip", skip)
        self.size, self.pool, self.depthwise = size, pool, depthwise

    def forward(self, u: Tensor) -> Tensor:
        u = check_grid(u, self.size)
        y = self.products(u)
        if self.skip is not None:
            y = torch.addcmul(y, self.skip.to(u.dtype), average_pool(u, self.pool)[:, None])
        return y.flatten(1, 2) if self.depthwise else y

    def extra_repr(self) -> str:
        return f"size={self.size}, pool={self.pool}"


class Product(nn.Module):
    """The sum of products that an einsum equation writes, of a matrix and u."""

    def __init__(self, equation: str, matrix: Tensor):
        super().__init__()
        self.equation, self.shape = equation, list(matrix.shape)
        self.register_buffer("matrix", matrix.flatten())  # to(memory_format=channels_last) would look for 4 axes

    def forward(self, u: Tensor) -> Tensor:
        return torch.einsum(self.equation, self.matrix.view(self.shape).to(u.dtype), u)

    def extra_repr(self) -> str:
        return f"{self.equation}, matrix={self.shape}"


class Spectrum(nn.Module):
    """Convolution along one axis, with pooling, as products with the transform there and back: (B, H, n) -> (B, C, H, m).

    Args:
        k: (C, H, 2n - 1) kernels by lag.
        pool: p, m = n // p.
    """

    def __init__(self, k: Tensor, pool: int):
        super().__init__()
        n = (k.shape[-1] + 1) // 2
        where = dict(dtype=torch.float64, device=k.device)
        angle = (math.pi / n) * torch.arange(n, **where)[:, None] * torch.arange(n + 1, **where)  # of 2n samples
        half = torch.tensor([0.5] + [1.0] * (n - 1) + [0.5], **where)
        back = torch.cat([half * angle.cos(), -half * angle.sin()], dim=-1) / n  # (n, 2n + 2)
        response = torch.fft.rfft(F.pad(k.double().roll(1 - n, -1)[..., :n], (0, n)), n=2 * n)
        before = F.pad(k.double()[..., : n - 1], (n + 1, 0))  # lags -(n - 1) to -1, at the end
        response = torch.view_as_real(response + torch.fft.rfft(before, n=2 * n)).movedim(-1, 0)
        self.register_buffer("there", torch.cat([angle.cos(), -angle.sin()], dim=-1).to(k.dtype))
        self.register_buffer("response", response.to(k.dtype).contiguous())  # (2, C, H, n + 1)
        self.register_buffer("back", average_pool(back[None, None], [pool, 1])[0, 0].mT.to(k.dtype).contiguous())

    def forward(self, u: Tensor) -> Tensor:
        re, im = (u @ self.there.to(u.dtype)).unsqueeze(1).chunk(2, dim=-1)
        a, b = self.response.to(u.dtype).unbind()
        return torch.cat([re * a - im * b, re * b + im * a], dim=-1) @ self.back.to(u.dtype)

    def extra_repr(self) -> str:
        return f"response={list(self.response.shape)}, back={list(self.back.shape)}"


@torch.fx.wrap
def check_grid(u: Tensor, size: list[int]) -> Tensor:
    """u, if it has the axes `size`. Export makes it a constraint. A trace holds no check: there the products refuse another
    size, but for an axis of one sample, which they broadcast."""
    if not torch.jit.is_tracing() and list(u.shape[2:]) != size:
        raise ValueError(f"this S4ND layer was fused at the grid {size}, not {list(u.shape[2:])}: fuse it there")
    return u


@torch.no_grad()
def fuse(layer: "S4ND", size: tuple[int, ...]) -> FusedS4ND:
    """The layer at the grid `size`, one entry per axis."""
    if layer.ndim == 1 and layer.D is not None and size[0] > ONE_MATRIX:
        k = layer.kernel_lags(0, size[0]).sum(0)  # (C, H, 2n - 1)
        k[..., size[0] - 1] += layer.D
        spectrum = Spectrum(k, layer.pool[0]).to(layer.D.dtype)
        return FusedS4ND([spectrum], None, list(size), list(layer.pool), depthwise=True)
    matrices = [axis_matrix(layer, axis, n) for axis, n in enumerate(size)]
    skip = None if layer.D is None else layer.D.reshape(*layer.D.shape, *([1] * layer.ndim)).clone()
    if layer.ndim == 1 or math.prod(size) <= ONE_MATRIX:
        products, skip = [one_product(matrices, skip, size, layer.pool)], None
    else:
        products = axis_products(matrices, depthwise=skip is not None)
    if layer.D is not None:
        products = [product.to(layer.D.dtype) for product in products]
    return FusedS4ND(products, skip, list(size), list(layer.pool), depthwise=layer.D is not None)


def axis_matrix(layer: "S4ND", axis: int, n: int) -> Tensor:
    """P T of an axis of n samples, rows in the order of the layer's outputs: (H, R, C, m, n)."""
    k = layer.kernel_lags(axis, n)  # (R, C, H, 2n - 1)
    if layer.out_channels is not None:
        k = k.unflatten(1, (layer.out_channels, layer.channels)).transpose(1, 2).flatten(1, 2)
    T = average_pool(toeplitz_matrix(k), [layer.pool[axis], 1])
    return T.permute(2, 0, 1, 3, 4).clone(memory_format=torch.contiguous_format)


def axis_products(matrices: list[Tensor], *, depthwise: bool) -> list[Product]:
    """One product per axis, the last axis first; the last product sums over R, and over H in the dense layer."""
    D = len(matrices)
    products = []
    for axis in reversed(range(D)):
        others = BEFORE[:axis], AFTER[axis + 1 : D]
        u = ("bh" if axis == D - 1 else "rcbh") + others[0] + BEFORE[axis] + others[1]
        y = ("rcbh" if axis > 0 else "bch" if depthwise else "bc") + others[0] + AFTER[axis] + others[1]
        products.append(Product(f"hrc{AFTER[axis]}{BEFORE[axis]},{u}->{y}", matrices[axis]))
    return products


def one_product(matrices: list[Tensor], skip: Tensor | None, size: tuple[int, ...], pool: tuple[int, ...]) -> Product:
    """The tensor products summed over R, with D on the diagonal, as one matrix for the whole grid."""
    D = len(matrices)
    before, after = BEFORE[:D], AFTER[:D]
    factors = ",".join(f"hrc{m}{w}" for m, w in zip(after, before, strict=True))
    if skip is None:
        K = torch.einsum(f"{factors}->c{after}h{before}", *matrices)
        return Product(f"c{after}h{before},bh{before}->bc{after}", K.contiguous())
    K = torch.einsum(f"{factors}->hc{after}{before}", *matrices)
    identity = torch.eye(math.prod(size), dtype=K.dtype, device=K.device).reshape(*size, *size)
    K = K + skip.transpose(0, 1).reshape(*K.shape[:2], *([1] * 2 * D)) * average_pool(identity, [*pool, *([1] * D)])
    return Product(f"hc{after}{before},bh{before}->bch{after}", K.contiguous())
