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

# From this length on the FFT's n log n beats the matrix product's n^2 on a CPU, forward and backward.
LONG_AXIS = 256


def separable_conv(u: Tensor, kernels: Sequence[Tensor], *, algorithm: str = "auto") -> Tensor:
    """Depthwise convolution over all axes, with zeros outside.

    Args:
        u: (B, H, n_1, ..., n_D).
        kernels: D tensors (R, C, H, 2n_i - 1), by lag (see conv/lags.py).
        algorithm: "toeplitz", "fft", or "auto": the matrix product on axes shorter than LONG_AXIS, else the FFT.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    if len(kernels) != u.ndim - 2:
        raise ValueError(f"need a kernel per axis of u (B, H, *axes) = {tuple(u.shape)}, got {len(kernels)} kernels")
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be auto or one of {sorted(ALGORITHMS)}, got {algorithm!r}")
    y = u[None, None]  # (R, C, B, H, *axes)
    for axis in range(-1, -len(kernels) - 1, -1):
        choice = algorithm if algorithm != "auto" else "toeplitz" if u.shape[axis] < LONG_AXIS else "fft"
        y = ALGORITHMS[choice](y, kernels[axis], axis)
    y = y[0] if len(y) == 1 else y.sum(0)
    # The products may leave the heads first in memory, where every elementwise operation after them would be slow.
    return y.transpose(0, 1).contiguous()
