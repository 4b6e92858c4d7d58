"""Both axes of a 2-D convolution in one kernel of Triton: an image of a head is read once, and its output written once.

    Y = P1 T1 X T2^T P2^T + skip P1 X P2^T

T1 and T2 are Toeplitz matrices, built from the 1-D kernels by index, and P1 and P2 means over pooling windows. A tile of X is a
stack of as many images of one head as its rows hold; P1 T1 is then block-diagonal. A program keeps its matrices and goes from
stack to stack. The backward pass keeps the gradients of P1 T1 and P2 T2 in registers meanwhile, n x n sums over the images, and
adds up their diagonals at the end; nothing is added atomically, so that every run gives the same.

Bounds, computed and not measured. In memory: 2 tensors forward (u, y) and 3 backward (u, the gradients of y and of u),
or 6 where three kernels have the registers that one has not (`in_one`); with R C > 1 the signal is read for each pair.
In 16 bits the stages of ConvNeXt-T at batch 128 move 2 tensors in 46, 23, 11.5 and 5.8 us at the 3.35 TB/s of an H100,
and 5 in 115, 58, 29 and 14 us. In arithmetic: 2 products with n x n matrices forward, n FLOP a byte, and 5 backward;
tensor cores are faster than memory below n = 295 there.

Shapes: B images, H heads, C kernels per head, R rank, pair q = c R + r of Q = C R, n_i samples along axis i, m_i = n_i // p_i
after pooling.
"""

import torch
import triton
import triton.language as tl

from s4nd.conv._triton_tiles import diagonal_sums, toeplitz
from s4nd.ops._triton import REGISTERS

SIZES = ("images", "part", "H", "O", "S", "J", "Q", "R", "n1", "n2", "m1", "m2", "p1", "p2")


@triton.jit
def _left(k, t_image, t, s_image, s, n, m, p, dtype: tl.constexpr):
    """p1 P1 T1 of a stack: zero between different images."""
    return tl.where(t_image == s_image, toeplitz(k, t, s, n, m, p), 0.0).to(dtype)


@triton.jit
def _matrices(
    k1, k2, a_image, a_row, b_image, b_row, column, n1, n2, m1, m2, p1, p2, ADJOINT: tl.constexpr, dtype: tl.constexpr
):
    """What stands left and right of a stack with rows a, to give one with rows b."""
    if ADJOINT:
        left = _left(k1, a_image[None, :], a_row[None, :], b_image[:, None], b_row[:, None], n1, m1, p1, dtype)
        right = toeplitz(k2, column[:, None], column[None, :], n2, m2, p2).to(dtype)
    else:
        left = _left(k1, b_image[:, None], b_row[:, None], a_image[None, :], a_row[None, :], n1, m1, p1, dtype)
        right = toeplitz(k2, column[None, :], column[:, None], n2, m2, p2).to(dtype)
    return left, right


@triton.jit
def _expanded(g, image, row, column, ahead, m1, m2, p1, p2, count):
    """Each sample of the pooled grid over its window: p1 p2 P1^T g P2^T. float32."""
    r, c = row // p1, column // p2
    inside = ((image < count) & (r < m1))[:, None] & (c < m2)[None, :]
    return tl.load(g + (image * ahead + r * m2)[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _summed(x, image, row, column, ahead, n2, m2, p1, p2, count):
    """The sums over windows: p1 p2 P1 x P2^T. float32."""
    inside = (image < count)[:, None] & (column < m2)[None, :]
    at = (image * ahead + row * p1 * n2)[:, None] + (column * p2)[None, :]
    total = tl.zeros((row.shape[0], column.shape[0]), dtype=tl.float32)
    for i in range(0, p1):
        for j in range(0, p2):
            total += tl.load(x + (i * n2 + j) + at, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=SIZES)
def plane(
    x, k1, k2, skip, y, images, part, H, O, S, J, R, n1, n2, m1, m2, p1, p2, scale,  # noqa: E741
    ADJOINT: tl.constexpr, POOLED: tl.constexpr, ONE: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output o of O of x (B, J, H, .., ..) -> y (B, O, H, .., ..), each a sum over S pairs; ADJOINT: by transposed matrices.

    part: images of a program. n2, m2: in multiples of UNIT, which says how rows are aligned. ONE: S is 1.
    """
    h, o = tl.program_id(0) % H, tl.program_id(0) // H
    dtype: tl.constexpr = x.dtype.element_ty
    n2 *= UNIT
    m2 *= UNIT
    if not POOLED:
        m1, m2, p1, p2 = n1, n2, 1, 1
    if ADJOINT:
        a1, a2, b1, b2 = m1, m2, n1, n2
    else:
        a1, a2, b1, b2 = n1, n2, m1, m2
    rows, column = tl.arange(0, ROWS), tl.arange(0, N)
    a_image, b_image = rows // a1, rows // b1
    a_row, b_row = rows - a_image * a1, rows - b_image * b1
    a_ahead, b_ahead = J * H * a1 * a2, O * H * b1 * b2
    stack = ROWS // n1
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, images)
    if ONE:
        of1, of2 = k1 + (o * H + h) * (2 * n1 - 1), k2 + (o * H + h) * (2 * n2 - 1)
        left, right = _matrices(
            of1, of2, a_image, a_row, b_image, b_row, column, n1, n2, m1, m2, p1, p2, ADJOINT, dtype
        )
    for start in range(first, last, stack):
        count = tl.minimum(stack, last - start)
        image = start + tl.zeros((), tl.int64)
        total = tl.zeros((ROWS, N), dtype=tl.float32)
        for i in range(0, S):
            q = o * S + i
            if not ONE:
                of1, of2 = k1 + (q * H + h) * (2 * n1 - 1), k2 + (q * H + h) * (2 * n2 - 1)
                left, right = _matrices(
                    of1, of2, a_image, a_row, b_image, b_row, column, n1, n2, m1, m2, p1, p2, ADJOINT, dtype
                )
            source = x + ((image * J + q * J // (O * S)) * H + h) * (a1 * a2)
            inside = (a_image < count)[:, None] & (column < a2)[None, :]
            X = tl.load(source + ((a_image * a_ahead + a_row * a2)[:, None] + column[None, :]), mask=inside, other=0.0)
            if skip is not None:  # once for each c, of which R pairs follow each other
                d = tl.load(skip + q // R * H + h, mask=q % R == 0, other=0.0)
                if not POOLED:
                    total += d * X.to(tl.float32)
                elif ADJOINT:
                    total += d * _expanded(source, b_image, b_row, column, a_ahead, m1, m2, p1, p2, count)
                else:
                    total += d * _summed(source, b_image, b_row, column, a_ahead, n2, m2, p1, p2, count)
            Z = tl.dot(left, X, input_precision=PRECISION).to(dtype)
            total = tl.dot(Z, right, total, input_precision=PRECISION)
        target = y + ((image * O + o) * H + h) * (b1 * b2)
        inside = (b_image < count)[:, None] & (column < b2)[None, :]
        at = (b_image * b_ahead + b_row * b2)[:, None] + column[None, :]
        tl.store(target + at, (scale * total).to(dtype), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def plane_gradients(
    g, x, k1, k2, skip, of_x, of_k1, of_k2, of_skip, images, part, H, Q, R, n1, n2, m1, m2, p1, p2, scale,
    POOLED: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of g (B, C, H, m_1, m_2) and x (B, H, n_1, n_2), those that are not None of these, but of_x only with of_k1:

    of_x (B, H, n_1, n_2) if Q is 1; and of each part of the images, float32: of_k1 (parts, Q, H, 2 ROWS) and
    of_k2 (parts, Q, H, 2 N), by lag from -ROWS and -N on; of_skip (parts, Q, H).
    """
    h, q = tl.program_id(0) % H, tl.program_id(0) // H
    dtype: tl.constexpr = x.dtype.element_ty
    n2 *= UNIT
    m2 *= UNIT
    if not POOLED:
        m1, m2, p1, p2 = n1, n2, 1, 1
    rows, column = tl.arange(0, ROWS), tl.arange(0, N)
    m_image, n_image = rows // m1, rows // n1
    m_row, n_row = rows - m_image * m1, rows - n_image * n1
    m_ahead, n_ahead = Q // R * H * m1 * m2, H * n1 * n2
    of1, of2 = k1 + (q * H + h) * (2 * n1 - 1), k2 + (q * H + h) * (2 * n2 - 1)
    left, right = _matrices(of1, of2, m_image, m_row, n_image, n_row, column, n1, n2, m1, m2, p1, p2, True, dtype)
    D1, D2 = tl.zeros((ROWS, ROWS), tl.float32), tl.zeros((N, N), tl.float32)
    products = tl.zeros((ROWS,), tl.float32)
    stack = ROWS // n1
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, images)
    for start in range(first, last, stack):
        count = tl.minimum(stack, last - start)
        image = start + tl.zeros((), tl.int64)
        g_at = g + ((image * (Q // R) + q // R) * H + h) * (m1 * m2)
        x_at = (image * H + h) * (n1 * n2)
        inside = (m_image < count)[:, None] & (column < m2)[None, :]
        G = tl.load(g_at + ((m_image * m_ahead + m_row * m2)[:, None] + column[None, :]), mask=inside, other=0.0)
        # Read across, not transposed afterwards: a tile and its transpose in one product have crashed on Hopper.
        inside = (n_image < count)[None, :] & (column < n2)[:, None]
        Xt = tl.load(x + x_at + ((n_image * n_ahead + n_row * n2)[None, :] + column[:, None]), mask=inside, other=0.0)
        inside = (n_image < count)[:, None] & (column < n2)[None, :]
        at = (n_image * n_ahead + n_row * n2)[:, None] + column[None, :]
        if of_x is not None or of_skip is not None:
            back = G.to(tl.float32)
            if POOLED:
                back = _expanded(g_at, n_image, n_row, column, m_ahead, m1, m2, p1, p2, count)
        if of_k1 is not None:
            W = tl.dot(G, right, input_precision=PRECISION).to(dtype)
            D1 = tl.dot(W, Xt, D1, input_precision=PRECISION)
        if of_k2 is not None:
            V = tl.dot(left, G, input_precision=PRECISION).to(dtype)
            D2 = tl.dot(Xt, V, D2, input_precision=PRECISION)
        if of_skip is not None:
            X = tl.load(x + x_at + at, mask=inside, other=0.0)
            products += tl.sum(back * X.to(tl.float32), 1)
        if of_x is not None:
            dX = tl.dot(left, W, input_precision=PRECISION)
            if skip is not None:
                dX += tl.load(skip + q * H + h) * back
            tl.store(of_x + x_at + at, (scale * dX).to(dtype), mask=inside)
    result = (tl.program_id(1) * Q + q) * H + h
    if of_k1 is not None:
        lead = tl.where(m_image < stack, m_row * p1, 4 * ROWS)
        sums = diagonal_sums(D1, lead, m_image * n1, n1, p1, ROWS)
        tl.store(of_k1 + result * (2 * ROWS) + tl.arange(0, 2 * ROWS), scale * sums)
    if of_k2 is not None:
        sums = diagonal_sums(tl.trans(D2), column * p2, column * 0, n2, p2, N)
        tl.store(of_k2 + result * (2 * N) + tl.arange(0, 2 * N), scale * sums)
    if of_skip is not None:
        tl.store(of_skip + result, scale * tl.sum(products))


def in_one(dtype: torch.dtype, rows: int, capability: tuple[int, int]) -> bool:
    """Whether one kernel has the registers for all gradients; else that of u and those of the two axes take three."""
    return rows < 64 or (dtype.itemsize == 2 and capability >= (9, 0))


def compiler_options(rows: int, unit: int, one: bool) -> dict:
    """Of both kernels. Rows that are not aligned need registers for their addresses, so a thread has fewer of them. Loads
    ahead of their use are worth it for images, not for the matrices that several pairs load in turn."""
    return {"num_warps": 8 if rows == 64 or unit == 1 else 4, "num_stages": 3 if one else 1, **REGISTERS}
