"""Both axes of a 2-D convolution in one kernel: an image and head is read once and its output written once.

    Y = P1 T1 X T2^T P2^T + skip P1 X P2^T,

T1 and T2 Toeplitz matrices, built from the 1-D kernels by index, P1 and P2 the means over pooling windows. A tile of X holds
as many images of one head, one below the other, as fit its rows; T1 is then block-diagonal. A program keeps its matrices and
goes from stack to stack; the backward pass keeps the gradients of both in registers meanwhile, n x n sums over the images, and
adds up their diagonals at the end. No atomic additions: the result is the same at every run.

Shapes: B batch, H heads, C kernels per head, R rank, Q = C R pairs, n_i samples along axis i, m_i = n_i // p_i after pooling.
Memory: forward 1 + 1 tensors read and written, backward 2 + 1, or 4 + 1 where registers want two kernels (`in_one`); with R C > 1
the signal is read for each pair. Arithmetic: 2 n products a sample forward and 5 n backward, padded to 16, 32 or 64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4nd.conv._triton_tiles import diagonal_sums, on, toeplitz
from s4nd.conv.choice import aligned, plane_tile

# Programs that fill a card: so many at least before one takes more than a stack.
PROGRAMS, PARTS = 4096, 1024
SIZES = ("images", "part", "H", "O", "S", "J", "R", "n1", "n2", "m1", "m2", "p1", "p2")


@triton.jit
def _left(k, t_stack, t, s_stack, s, n, m, p, dtype: tl.constexpr):
    """A tile of P1 T1, block-diagonal over the images of a stack."""
    return tl.where(t_stack == s_stack, toeplitz(k, t, s, n, m, p), 0.0).to(dtype)


@triton.jit
def _expanded(g, stack, row, column, ahead, m1, m2, p1, p2, count):
    """P1^T g P2^T times p1 p2: each sample of the pooled grid over its window. float32."""
    r, c = row // p1, column // p2
    inside = ((stack < count) & (r < m1))[:, None] & (c < m2)[None, :]
    return tl.load(g + (stack * ahead + r * m2)[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _summed(x, stack, row, column, ahead, n2, m2, p1, p2, count):
    """P1 x P2^T times p1 p2: the sums of the windows. float32."""
    total = tl.zeros((row.shape[0], column.shape[0]), dtype=tl.float32)
    inside = (stack < count)[:, None] & (column < m2)[None, :]
    at = (stack * ahead + row * (p1 * n2))[:, None] + (column * p2)[None, :]
    for i in range(0, p1):
        for j in range(0, p2):
            total += tl.load(x + at + (i * n2 + j), mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=SIZES)
def plane(
    x, k1, k2, skip, y, images, part, H, O, S, J, R, n1, n2, m1, m2, p1, p2, scale,  # noqa: E741
    ADJOINT: tl.constexpr, POOLED: tl.constexpr, ONE: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output o of O of x (B, J, H, .., ..) -> y (B, O, H, .., ..), a sum over S pairs; ADJOINT: with transposed matrices.

    images: B. part: images of a program. n2, m2: in units of UNIT, which tells the compiler their alignment. ONE: S = 1.
    """
    h, o = tl.program_id(0) % H, tl.program_id(0) // H
    dtype: tl.constexpr = x.dtype.element_ty
    n2 *= UNIT
    m2 *= UNIT
    if not POOLED:
        m1, m2, p1, p2 = n1, n2, 1, 1
    a1, a2, b1, b2 = n1, n2, m1, m2
    if ADJOINT:
        a1, a2, b1, b2 = m1, m2, n1, n2
    rows, columns = tl.arange(0, ROWS), tl.arange(0, N)
    a_stack, b_stack = rows // a1, rows // b1
    a_row, b_row = rows - a_stack * a1, rows - b_stack * b1
    stacked = ROWS // n1
    first, last = tl.program_id(1) * part, tl.minimum((tl.program_id(1) + 1) * part, images)
    for start in range(first, last, stacked):
        count = tl.minimum(stacked, last - start)
        image = first.to(tl.int64) + (start - first)
        total = tl.zeros((ROWS, N), dtype=tl.float32)
        for i in range(0, S):
            q = o * S + i
            of1, of2 = k1 + (q * H + h) * (2 * n1 - 1), k2 + (q * H + h) * (2 * n2 - 1)
            if ADJOINT:
                left = _left(of1, a_stack[None, :], a_row[None, :], b_stack[:, None], b_row[:, None], n1, m1, p1, dtype)
                right = toeplitz(of2, columns[:, None], columns[None, :], n2, m2, p2).to(dtype)
            else:
                left = _left(of1, b_stack[:, None], b_row[:, None], a_stack[None, :], a_row[None, :], n1, m1, p1, dtype)
                right = toeplitz(of2, columns[None, :], columns[:, None], n2, m2, p2).to(dtype)
