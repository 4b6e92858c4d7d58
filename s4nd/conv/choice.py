"""Which algorithm computes a convolution: all limits between them, in one place.

They were measured on CPUs in float32, forward and backward, on two cores, ONE_MATRIX and NARROW on one; `tools/bench_layer.py
--only stages` measures `auto` against each algorithm.
"""

import math
from collections.abc import Sequence

EVERYWHERE = ("toeplitz", "fft", "kronecker")  # on any device, in any dtype
ALGORITHMS = (*EVERYWHERE, "fused")

# An axis of n samples takes the matrix product up to SHORT_AXIS, and up to LONG_AXIS if enough rows (images times the other
# axes) share the n x n matrix, which costs as much to build as n rows to multiply. With several axes the matrix products stay
# in the cache together, and n / 4 rows are enough.
SHORT_AXIS, LONG_AXIS = 32, 256
# Grids of at most ONE_MATRIX samples take one matrix for all axes if IMAGES times as many images share it.
ONE_MATRIX, IMAGES = 64, 2
# Rows of at most so many samples are a bad shape for the result of a GEMM: its transpose and a copy take half the time.
NARROW = 12
# The fused form takes axes up to so many samples: its products, n FLOP a byte in 16 bits, are as fast as the memory of an H100
# below n = 295, which is computed and not measured.
FUSED_AXIS = 256


def plane_tile(size: Sequence[int], pool: Sequence[int], pairs: int) -> tuple[int, int, int] | None:
    """How one fused kernel has a whole plane in its registers: rows and columns of its tile, and of how many elements the rows
    in memory are multiples; None if it cannot. Rows that are not aligned cost an address for each element, and several `pairs`
    of kernels of a head (R C) matrices that are built in turn: there is no room for either in a tile of 64."""
    unit = 4 if all(n % 4 == 0 for n in (size[1], size[1] // pool[1])) else 1
    if max(size) <= 32:
        return 32, 16 if size[1] <= 16 else 32, unit
    return (64, 64, unit) if max(size) <= 64 and unit == 4 and pairs == 1 else None


def choose(images: int, size: Sequence[int], algorithm: str) -> list[str]:
    """The algorithm of each axis of a grid of this size; "kronecker" is of all axes or of none.

    Where "fused" needs its definition, that of "auto" is."""
    if algorithm in ("toeplitz", "kronecker"):
        return [algorithm] * len(size)
    if images == 0:  # of which there is no FFT
        return ["toeplitz"] * len(size)
    if algorithm == "fft":
        return ["fft"] * len(size)
    samples = math.prod(size)
    if len(size) > 1 and samples <= ONE_MATRIX and images >= IMAGES * samples:
        return ["kronecker"] * len(size)
    rows = [images * samples // n * (1 if len(size) == 1 else 4) for n in size]
    return ["fft" if n > max(SHORT_AXIS, min(r, LONG_AXIS)) else "toeplitz" for n, r in zip(size, rows, strict=True)]
