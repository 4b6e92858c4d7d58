"""Convolution along one axis by FFT: for long axes, O(n log n) in time and O(n) in memory."""

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


def fft_conv(u: Tensor, k: Tensor, axis: int) -> Tensor:
    """Convolve u along one axis, with zeros outside; same arguments and result as `toeplitz_conv`.

    Transforms are taken in float32 at least, whatever autocast says: half precision has no FFT of every length.
    """
    n = u.shape[axis]
    length = fast_length(2 * n - 1)  # lags -(n-1)..n-1 each at their own place of the circle
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.promote_types(u.dtype, torch.float32)
        k = k.to(dtype)
        circular = torch.cat([k[..., n - 1 :], k.new_zeros(*k.shape[:-1], length - 2 * n + 1), k[..., : n - 1]], dim=-1)
        spectrum = torch.fft.rfft(circular)[:, :, None]  # (R, C, 1, H, F)
        spectrum = spectrum.reshape(*spectrum.shape[:-1], *([1] * (u.ndim - 5)), spectrum.shape[-1]).movedim(-1, axis)
        y = torch.fft.irfft(torch.fft.rfft(u.to(dtype), n=length, dim=axis) * spectrum, n=length, dim=axis)
        return y.narrow(axis, 0, n).to(u.dtype)
