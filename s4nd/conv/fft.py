"""Convolution along one axis by FFT: for long axes, O(n log n) in time and O(n) in memory.

Shapes: R rank, C kernels per head, B batch, H heads, n samples of the axis, F frequencies; a block of a signal is
(h, ..., n, ...), h heads.
"""

import torch
from torch import Tensor


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


def fft_along(u: Tensor, k: Tensor, axis: int, *, summed: bool = False) -> Tensor:
    """Convolve u along one axis, with zeros outside, by operations that autograd knows.

    Args:
        u: (R, C, B, H, *axes); R or C may be 1 and then broadcast against the kernel.
        k: (R, C, H, 2n - 1) by lag (see conv/lags.py), n = u.shape[axis].
        axis: negative index into u.
        summed: sum over R.

    Returns:
        (R, C, B, H, *axes), or (C, B, H, *axes) if summed.

    Transforms are taken in float32 at least: half precision has no FFT of every length.
    """
    x, n = u.to(torch.promote_types(u.dtype, torch.float32)), u.shape[axis]
    length = _circle(n)
    spectrum = _spectrum(k.to(x.dtype), length)[:, :, None]  # (R, C, 1, H, F)
    spectrum = spectrum.reshape(*spectrum.shape[:-1], *([1] * (u.ndim - 5)), spectrum.shape[-1]).movedim(-1, axis)
    y = torch.fft.irfft(torch.fft.rfft(x, n=length, dim=axis) * spectrum, n=length, dim=axis).narrow(axis, 0, n)
    return (y.sum(0) if summed else y).to(u.dtype)


class Spectrum:
    """The transforms of a block's kernels by lag (h, 2n - 1), along axis number i of the signal: as `Toeplitz` is used."""

    def __init__(self, k: Tensor):
        self.n = (k.shape[-1] + 1) // 2
        self.length = _circle(self.n)
        self.spectrum = _spectrum(k, self.length)  # (h, F)

    def __call__(self, x: Tensor, axis: int, out: Tensor, *, add: bool = False) -> Tensor:
        """k * x, written to or added to `out`."""
        return self._multiply(self.spectrum, x, axis, out, add)

    def adjoint(self, g: Tensor, axis: int, out: Tensor, *, add: bool = False) -> Tensor:
        """The same with the reversed kernel."""
        return self._multiply(self.spectrum.conj(), g, axis, out, add)

    def kernel_grad(self, g: Tensor, x: Tensor, axis: int) -> Tensor:
        """Gradient of the kernel (h, 2n - 1), where g is that of k * x."""
        product = self._transform(g, axis) * self._transform(x, axis).conj()
        circular = torch.fft.irfft(product.flatten(1, -2).sum(1), n=self.length)
        return torch.cat([circular[..., self.length - self.n + 1 :], circular[..., : self.n]], dim=-1)

    def _multiply(self, spectrum: Tensor, x: Tensor, axis: int, out: Tensor, add: bool) -> Tensor:
        place = spectrum.reshape(len(x), *([1] * (x.ndim - 2)), -1)
        y = torch.fft.irfft(self._transform(x, axis) * place, n=self.length)[..., : self.n]
        y = y.movedim(-1, _place(x, axis))
        return out.add_(y) if add else out.copy_(y)

    def _transform(self, x: Tensor, axis: int) -> Tensor:
        """(h, *other axes, F)."""
        return torch.fft.rfft(x.movedim(_place(x, axis), -1), n=self.length)


def _circle(n: int) -> int:
    """A length on which lags -(n-1) .. n-1 each have their own place."""
    return fast_length(2 * n - 1)


def _place(x: Tensor, axis: int) -> int:
    """Where a block (h, n_1, ..., n_{D-1}, B, n_D) has the axis."""
    return -1 if axis == x.ndim - 3 else axis + 1


def _spectrum(k: Tensor, length: int) -> Tensor:
    """(..., 2n - 1) by lag -> (..., F)."""
    n = (k.shape[-1] + 1) // 2
    circular = torch.cat([k[..., n - 1 :], k.new_zeros(*k.shape[:-1], length - 2 * n + 1), k[..., : n - 1]], dim=-1)
    return torch.fft.rfft(circular)
