"""Ways to apply a fixed kernel along one axis of a signal, as modules of buffers: what a plan is made of.

Shapes: B batch, G inner channels, k of them for each channel of the input, n samples of the axis, m = n // p after pooling.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd.conv.pooling import average_pool
from s4nd.ops.precision import wide, widest


def order(ndim: int, source: int, destination: int) -> list[int]:
    """Of dimensions, for `permute`, as `movedim(source, destination)` has it, which the older ONNX exporter gets wrong."""
    dims = [i for i in range(ndim) if i != source]
    return [*dims[:destination], source, *dims[destination:]]


def _window(k: Tensor, taps: int, pool: int = 1) -> Tensor:
    """A kernel by lag as torch's convolution takes it, a cross-correlation, with an average pooling after it folded in:

        y[m] = 1/p sum_(j<p) sum_s k[m p + j - s] u[s]   is a convolution of stride p, with `taps` - 1 zeros on either side

    Args:
        k: (..., 2n - 1), zero at lags of `taps` and more.
        taps: at most n.
        pool: p.

    Returns:
        (..., 2 taps + p - 2).
    """
    n = (k.shape[-1] + 1) // 2
    near = k[..., n - taps : n + taps - 1]
    if pool > 1:
        padded = F.pad(near, (pool - 1, pool - 1)).flatten(0, -2)
        near = F.avg_pool1d(padded, pool, stride=1).unflatten(0, near.shape[:-1])
    return near.flip(-1).contiguous()


class AxisConv(nn.Module):
    """A depthwise convolution along one axis, by torch's 2-D one: axes before it join the batch, axes after it lie side by
    side. (B, groups, *sizes) -> (B, G, *sizes with n // p).

    Args (of all forms along an axis):
        k: (G, 2n - 1) by lag, G a multiple of `groups`.
        groups: channels of the input.
        sizes: of the input's axes.
        axis: the one to convolve.
        taps: lags of as many and more are zero.
        pool: p, of the pooling after it.
    """

    if TYPE_CHECKING:  # TorchScript would take an annotation for an attribute
        weight: Tensor

    def __init__(self, k: Tensor, groups: int, sizes: list[int], axis: int, taps: int, pool: int):
        super().__init__()
        D = len(sizes)
        rows = axis == D - 1  # the last axis is the row of an image: a CPU's convolution works along rows
        self.folded = max(D - 2, 0) if rows else axis
        beside = math.prod(sizes[self.folded : axis] if rows else sizes[axis + 1 :])
        self.image = [-1, groups, beside, sizes[axis]] if rows else [-1, groups, sizes[axis], beside]
        self.stride = [1, pool] if rows else [pool, 1]
        self.padding = [0, taps - 1] if rows else [taps - 1, 0]
        self.groups, self.is_image = groups, D == 2
        self.fold, self.unfold = order(D + 2, 1, self.folded + 1), order(D + 2, self.folded + 1, 1)
        after = [*sizes[:axis], sizes[axis] // pool, *sizes[axis + 1 :]]
        self.shape = [-1, *after[: self.folded], len(k), *after[self.folded :]]
        weight = _window(k, taps, pool)
        self.register_buffer("weight", weight[:, None, None] if rows else weight[:, None, :, None])

    def forward(self, u: Tensor) -> Tensor:
        weight = self.weight.to(u.dtype)
        if (
            self.is_image
        ):  # a reshape, even to the same shape, would hide from torch that a single image is channels-last
            return F.conv2d(u, weight, None, self.stride, self.padding, [1, 1], self.groups)
        u = (u.permute(self.fold) if self.folded > 0 else u).reshape(self.image)
        y = F.conv2d(u, weight, None, self.stride, self.padding, [1, 1], self.groups).reshape(self.shape)
        return y.permute(self.unfold) if self.folded > 0 else y

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}, stride={self.stride}, padding={self.padding}, groups={self.groups}"


class AxisSpectrum(nn.Module):
    """The same as products with a discrete Fourier transform there and back, in real arithmetic: matrices that all channels
    share, and numbers of each channel between them; arguments and shapes as of AxisConv."""

    if TYPE_CHECKING:
        there: Tensor
        response: Tensor
        back: Tensor

    def __init__(self, k: Tensor, groups: int, sizes: list[int], axis: int, taps: int, pool: int):
        super().__init__()
        n = sizes[axis]
        D = len(sizes)
        self.before, self.after = order(D + 2, axis + 2, D + 1), order(D + 2, D + 1, axis + 2)
        where: dict[str, Any] = dict(dtype=widest(k.device), device=k.device)
        angle = (math.pi / n) * torch.arange(n, **where)[:, None] * torch.arange(n + 1, **where)  # of 2n samples
        half = torch.tensor([0.5] + [1.0] * (n - 1) + [0.5], **where)
        back = torch.cat([half * angle.cos(), -half * angle.sin()], dim=-1) / n  # (n, 2n + 2)
        circle = torch.cat([wide(k)[:, n - 1 :], k.new_zeros(len(k), 1), wide(k)[:, : n - 1]], dim=-1)  # (G, 2n)
        response = torch.view_as_real(torch.fft.rfft(circle)).movedim(-1, 0).unflatten(1, [groups, -1])
        response = response.reshape(2, 1, *response.shape[1:3], *([1] * (len(sizes) - 1)), n + 1)
        self.register_buffer("there", torch.cat([angle.cos(), -angle.sin()], dim=-1).to(k.dtype))
        self.register_buffer("response", response.to(k.dtype).contiguous())  # (2, 1, groups, k, 1.., n + 1)
        self.register_buffer("back", average_pool(back[None, None], [pool, 1])[0, 0].mT.to(k.dtype).contiguous())

    def forward(self, u: Tensor) -> Tensor:
        spectrum = u.permute(self.before) @ self.there.to(u.dtype)
        re, im = spectrum.unsqueeze(2).chunk(2, dim=-1)
        a, b = self.response.to(u.dtype).unbind()
        y = torch.cat([re * a - im * b, re * b + im * a], dim=-1) @ self.back.to(u.dtype)
        return y.flatten(1, 2).permute(self.after)
