"""N-D convolution with K = sum_r k_r^(1) x ... x k_r^(D), applied axis by axis; the algorithm is chosen per axis.

Nguyen et al., "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces", 2022, arXiv:2210.06583:
the kernel is a (low-rank sum of) tensor products, so its convolution is a (sum of) products of 1-D convolutions.

Shapes: B batch, H heads, R rank, C kernels per head, n_i samples along axis i.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from s4nd.conv.fft import fft_conv
from s4nd.conv.toeplitz import toeplitz_conv

ALGORITHMS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"toeplitz": toeplitz_conv, "fft": fft_conv}

# An axis of n samples takes the matrix product up to SHORT_AXIS, and up to LONG_AXIS if at least n rows (images times the
# other axes) share the n x n matrix, which costs as much to build as n rows to multiply. Measured on two CPU cores, forward
# and backward: the FFT is 7 times faster at n = 128 with 8 rows, the matrix 2.4 times at n = 192 with 384.
SHORT_AXIS, LONG_AXIS = 64, 256


def separable_conv(u: Tensor, kernels: Sequence[Tensor], *, algorithm: str = "auto") -> Tensor:
    """Depthwise convolution over all axes, with zeros outside.

    Args:
        u: (B, H, n_1, ..., n_D).
        kernels: D tensors (R, C, H, 2n_i - 1), by lag (see conv/lags.py).
        algorithm: "toeplitz", "fft", or "auto": per axis, the matrix product or, on a long one, the FFT.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    if len(kernels) != u.ndim - 2:
        raise ValueError(f"need a kernel per axis of u (B, H, *axes) = {tuple(u.shape)}, got {len(kernels)} kernels")
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be auto or one of {sorted(ALGORITHMS)}, got {algorithm!r}")
    y = u[None, None]  # (R, C, B, H, *axes)
    for axis in range(-1, -len(kernels) - 1, -1):
        choice = _cheapest(u, axis) if algorithm == "auto" else algorithm
        y = ALGORITHMS[choice](y, kernels[axis], axis)
    y = y[0] if len(y) == 1 else y.sum(0)
    # The products may leave the heads first in memory, where every elementwise operation after them would be slow.
    return y.transpose(0, 1).contiguous()


def _cheapest(u: Tensor, axis: int) -> str:
    n = u.shape[axis]
    rows = u.numel() // (u.shape[1] * n)
    return "fft" if n > max(SHORT_AXIS, min(rows, LONG_AXIS)) else "toeplitz"
