"""Convolution along one axis by FFT: for long axes, O(n log n) in time and O(n) in memory.

Shapes: R rank, C kernels per head, B batch, H heads, n samples of the axis, F frequencies.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from s4nd.ops import autodiff
from s4nd.ops.blocks import head_blocks


def fast_length(n: int) -> int:
    """The smallest length >= n of the form 2^a 3^b 5^c, for which FFTs are quick."""
    best = 1 << max(n - 1, 0).bit_length()
    odd5 = 1
    while odd5 < best:
        odd = odd5
        while odd < best:
            length = odd << max(-(-n // odd) - 1, 0).bit_length()
            best = min(best, length)
            odd *= 3
        odd5 *= 5
    return best


def fft_conv(u: Tensor, k: Tensor, axis: int, *, summed: bool = False) -> Tensor:
    """Convolve u along one axis, with zeros outside.

    Args:
        u: (R, C, B, H, *axes); R or C may be 1 and then broadcast against the kernel.
        k: (R, C, H, 2n - 1) by lag (see conv/lags.py), n = u.shape[axis].
        axis: negative index into u.
        summed: sum over R.

    Returns:
        (R, C, B, H, *axes), or (C, B, H, *axes) if summed.

    Transforms are taken in float32 at least, whatever autocast says: half precision has no FFT of every length. On a CPU the
    heads go in blocks whose spectra stay in the cache, and the backward pass takes the spectra again instead of keeping them.
    """
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.promote_types(u.dtype, torch.float32)
        blocks = u.device.type == "cpu" and not torch.compiler.is_compiling()
        y = (_FFTConv.apply if blocks else definition)(u.to(dtype), k.to(dtype), axis)
        if summed:
            y = y[0] if len(y) == 1 else y.sum(0)
        return y.to(u.dtype)


def definition(u: Tensor, k: Tensor, axis: int) -> Tensor:
    """All heads at once, by operations that autograd knows."""
    n = u.shape[axis]
    length = fast_length(2 * n - 1)  # lags -(n-1)..n-1 each at their own place of the circle
    product = torch.fft.rfft(u, n=length, dim=axis) * _spectrum(k, length, u.ndim, axis)
    return torch.fft.irfft(product, n=length, dim=axis).narrow(axis, 0, n)


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(u: Tensor, k: Tensor, axis: int) -> Tensor:
        y = u.new_empty(torch.broadcast_shapes(u.shape, (*k.shape[:2], *u.shape[2:])))
        for heads in _blocks(y):
            y[:, :, :, heads] = definition(u[:, :, :, heads], k[:, :, heads], axis)
        return y

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        u, k, ctx.axis = inputs
        ctx.save_for_backward(u, k)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        u, k = ctx.saved_tensors
        axis, n, (of_u, of_k, _) = ctx.axis, u.shape[ctx.axis], ctx.needs_input_grad
        if autodiff.wanted():
            return autodiff.by_definition(definition, (u, k, axis), grad)
        length = fast_length(2 * n - 1)
        grad_u, grad_k = torch.empty_like(u) if of_u else None, torch.empty_like(k) if of_k else None
        for heads in _blocks(grad):
            g = torch.fft.rfft(grad[:, :, :, heads], n=length, dim=axis)
            if of_u:
                product = g * _spectrum(k[:, :, heads], length, u.ndim, axis).conj()
                whole = torch.fft.irfft(product, n=length, dim=axis).narrow(axis, 0, n)
                grad_u[:, :, :, heads] = whole.sum_to_size(grad_u[:, :, :, heads].shape)
            if of_k:
                product = g * torch.fft.rfft(u[:, :, :, heads], n=length, dim=axis).conj()
                product = product.movedim(axis, -1).movedim(3, 2)  # (R, C, h, B, ..., F)
                circular = torch.fft.irfft(product.flatten(3, -2).sum(3), n=length)
                grad_k[:, :, heads, n - 1 :] = circular[..., :n]
                grad_k[:, :, heads, : n - 1] = circular[..., length - n + 1 :]
        return grad_u, grad_k, None


def _blocks(y: Tensor) -> Iterator[slice]:
    """Heads whose spectra fit the cache: length F is about n, complex."""
    return head_blocks(y.shape[3], 2 * y[:, :, :, 0].numel(), y.device)


def _spectrum(k: Tensor, length: int, ndim: int, axis: int) -> Tensor:
    """(R, C, H, 2n - 1) by lag -> (R, C, 1, H, 1, .., F, .., 1), the frequencies at `axis`."""
    n = (k.shape[-1] + 1) // 2
    circular = torch.cat([k[..., n - 1 :], k.new_zeros(*k.shape[:-1], length - 2 * n + 1), k[..., : n - 1]], dim=-1)
    spectrum = torch.fft.rfft(circular)[:, :, None]  # (R, C, 1, H, F)
    return spectrum.reshape(*spectrum.shape[:-1], *([1] * (ndim - 5)), spectrum.shape[-1]).movedim(-1, axis)
