"""Both axes of a 2-D convolution in one kernel of Triton: an image of a head is read once, and its output written once.

    Y = P1 T1 X T2^T P2^T + skip P1 X P2^T

T1 and T2 are Toeplitz matrices, built from the 1-D kernels by index, and P1 and P2 means over pooling windows. A tile of X is a
stack of as many images of one head as its rows hold; P1 T1 is then block-diagonal. A program keeps its matrices and goes from
stack to stack. The backward pass keeps the gradients of P1 T1 and P2 T2 in registers meanwhile, n x n sums over the images, and
adds up their diagonals at the end; nothing is added atomically, so that every run gives the same.

Bounds, computed and not measured. In memory: 2 tensors forward (u, y) and 3 backward (u, the gradients of y and of u), or 6 where three
kernels have the registers that one has not (`in_one`); with R C > 1 the signal is read for each pair. In 16 bits ConvNeXt-T's stages at
batch 128 move 2 tensors in 46, 23, 11.5 and 5.8 us at an H100's 3.35 TB/s, and 5 in 115, 58, 29 and 14 us. In arithmetic: 2 products
with n x n matrices forward, n FLOP a byte, and 5 backward; tensor cores are faster than memory below n = 295 there.

Shapes: B images, H heads, C kernels per head, R rank, pair q = c R + r of Q = C R, n_i samples along axis i, m_i = n_i // p_i
after pooling.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4nd.conv._triton_tiles import REGISTERS, at_work_on, central, diagonal_sums, toeplitz
from s4nd.conv.choice import plane_tile

# Programs to fill a card with, before one takes more stacks than one.
PROGRAMS, GRADIENT_PROGRAMS = 4096, 512
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
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    for w in range(1, p1 * p2):
        total += tl.load(x + at + (w // p2 * n2 + w % p2), mask=inside, other=0.0).to(tl.float32)
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
            Z = tl.dot(left, X, input_precision=PRECISION).to(dtype)
            total = tl.dot(Z, right, total, input_precision=PRECISION)
            if skip is not None:  # once for each c, of which R pairs follow each other
                d = tl.load(skip + q // R * H + h, mask=q % R == 0, other=0.0)
                if not POOLED:
                    total += d * X.to(tl.float32)
                elif ADJOINT:
                    total += d * _expanded(source, b_image, b_row, column, a_ahead, m1, m2, p1, p2, count)
                else:
                    total += d * _summed(source, b_image, b_row, column, a_ahead, n2, m2, p1, p2, count)
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
            if POOLED:
                back = _expanded(g_at, n_image, n_row, column, m_ahead, m1, m2, p1, p2, count)
            else:
                back = G.to(tl.float32)
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


def forward(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, pool: Sequence[int]) -> Tensor:
    """u (B, H, n_1, n_2), 2 kernels (R, C, H, 2n_i - 1) and skip (C, H), float32 -> (B, C, H, m_1, m_2), means over `pool`."""
    B, C = len(u), kernels[0].shape[1]
    y = u.new_empty(B, C, u.shape[1], *(n // p for n, p in zip(u.shape[2:], pool, strict=True)))
    _apply(u.contiguous()[:, None], kernels, skip, y, pool, adjoint=False)
    return y


def backward(
    grad: Tensor,
    u: Tensor,
    kernels: Sequence[Tensor],
    skip: Tensor | None,
    pool: Sequence[int],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of u, skip and the kernels, float32 but that of u, given that of y; None where `needed` is false."""
    of_u, of_skip, *of_kernels = needed
    (R, C, H), B = kernels[0].shape[:3], len(u)
    u, grad = u.contiguous(), grad.contiguous()
    rows, N, unit = plane_tile(u.shape[2:], pool)
    capability = torch.cuda.get_device_capability(u.device) if u.is_cuda else (9, 0)
    together = in_one(u.dtype, rows, capability)
    grad_u = torch.empty_like(u) if of_u else None
    with_u = of_u and together and R * C == 1 and of_kernels[0]
    if of_u and not with_u:
        _apply(grad, kernels, skip, grad_u[:, None], pool, adjoint=True)
    part, parts = _parts(B, rows // u.shape[2], R * C * H, GRADIENT_PROGRAMS)
    scratch = [
        u.new_empty(parts, C, R, H, *size, dtype=torch.float32) if wanted else None
        for size, wanted in zip(((), (2 * rows,), (2 * N,)), (of_skip, *of_kernels), strict=True)
    ]
    all_of = grad_u if with_u else None, scratch[1], scratch[2], scratch[0]
    launches = [all_of] if together else [(None, scratch[1], None, None), (None, None, scratch[2], scratch[0])]
    k1, k2 = _by_pair(kernels)
    sizes, options = _geometry(u, pool)
    for of in launches:
        if any(x is not None for x in of):
            with at_work_on(u.device):
                plane_gradients[(H * R * C, parts)](
                    grad, u, k1, k2, skip, *of, B, part, H, R * C, R, *sizes, **options, **compiler_options(rows, unit, True)
                )
    grad_skip = scratch[0][:, :, 0].sum(0) if of_skip else None  # which every r found
    lags = [
        central(x.sum(0), n).transpose(0, 1) if x is not None else None
        for x, n in zip(scratch[1:], u.shape[2:], strict=True)
    ]
    return [grad_u, grad_skip, *lags]


def _apply(
    x: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, y: Tensor, pool: Sequence[int], *, adjoint: bool
) -> None:
    """x (B, J, H, .., ..) -> y (B, O, H, .., ..); one of J and O is C, or both are 1."""
    (R, C, H), (B, J), O = kernels[0].shape[:3], x.shape[:2], y.shape[1]  # noqa: E741
    full = y if adjoint else x
    sizes, options = _geometry(full[:, 0], pool)
    part, parts = _parts(B, options["ROWS"] // full.shape[3], H * O, PROGRAMS)
    S = R * C // O
    with at_work_on(x.device):
        plane[(H * O, parts)](
            x, *_by_pair(kernels), skip, y, B, part, H, O, S, J, R, *sizes, ADJOINT=adjoint, ONE=S == 1, **options,
            **compiler_options(options["ROWS"], options["UNIT"], S == 1),
        )  # fmt: skip


def _by_pair(kernels: Sequence[Tensor]) -> list[Tensor]:
    """(R, C, H, 2n - 1) -> (C, R, H, 2n - 1) in memory."""
    return [k.transpose(0, 1).contiguous() for k in kernels]


def _geometry(full: Tensor, pool: Sequence[int]) -> tuple[tuple, dict]:
    """Arguments of both kernels from n1 on, for a signal (B, H, n_1, n_2) before pooling."""
    (n1, n2), (p1, p2) = full.shape[2:], pool
    rows, N, unit = plane_tile((n1, n2), pool)
    precision = "tf32"  # float32 is here only where that is allowed, see conv/fused.py
    options = {"POOLED": p1 * p2 > 1, "UNIT": unit, "ROWS": rows, "N": N, "PRECISION": precision}
    return (n1, n2 // unit, n1 // p1, n2 // p2 // unit, p1, p2, 1 / (p1 * p2)), options


def _parts(images: int, stack: int, heads: int, programs: int) -> tuple[int, int]:
    """Images of a program, whole stacks, and how many programs share the images of a head."""
    stacks = -(-images // stack)
    part = stack * max(1, stacks * heads // programs)
    return part, -(-images // part)
