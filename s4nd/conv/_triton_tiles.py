"""Tiles of Toeplitz matrices and sums along their diagonals, for the kernels of _triton_plane.py and _triton_axes.py.

Shapes: n samples of an axis, p of a pooling window, m = n // p after pooling; a tile has N rows, a power of two.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def toeplitz(k, t, s, n, m, p):
    """p P T: the sum of T[t p, s], ..., T[t p + p - 1, s], where T[t, s] = k[t - s] is given by lag, 2n - 1 of them from k on.

    t, s: indices from 0 that broadcast to the tile, in either order: the transposed tile is the one with s along its rows. Zero
    where t >= m or s >= n. float32.
    """
    inside = (t < m) & (s < n)
    lag = t * p - s + (n - 1)
    tile = tl.load(k + lag, mask=inside, other=0.0)
    for j in range(1, p):
        tile += tl.load(k + lag + j, mask=inside, other=0.0)
    return tile


@triton.jit
def diagonal_sums(D, first, start, n, p, N: tl.constexpr):
    """The transpose of `toeplitz`: (2N,) sums of D (N, N) over t p + j - s = l, 0 <= j < p, for l = -N, ..., N - 1.

    first: (N,) t p of each row of D; 4N, beyond all lags, for a row that does not count.
    start: (N,) column of D that is s = 0 of the row's matrix; n columns from there on count.
    """
    lag = tl.arange(0, 2 * N)[None, :] - N
    sums = tl.zeros((2 * N,), dtype=tl.float32)
    for j in range(0, p):
        s = first[:, None] + j - lag
        inside = (s >= 0) & (s < n)
        values = tl.gather(D, tl.where(inside, s + start[:, None], 0), 1)
        sums += tl.sum(tl.where(inside, values, 0.0), 0)
    return sums


def central(sums: Tensor, n: int) -> Tensor:
    """Lags -(n - 1), ..., n - 1 of those from -N to N - 1: (..., 2N) -> (..., 2n - 1)."""
    return sums.narrow(-1, sums.shape[-1] // 2 - (n - 1), 2 * n - 1)


def by_pair(kernels: Sequence[Tensor]) -> list[Tensor]:
    """(R, C, H, 2n - 1) -> (C, R, H, 2n - 1) in memory: a pair of kernels per number q = c R + r."""
    return [k.transpose(0, 1).contiguous() for k in kernels]
