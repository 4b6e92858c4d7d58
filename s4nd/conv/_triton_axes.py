"""The convolution axis by axis in Triton, in tiles: any number of axes, and axes too long for a tile.

    y[.., t, ..] = sum_s k[t - s] x[.., s, ..]

is a product with a Toeplitz matrix, of which each tile is built from the 1-D kernel by index where it is multiplied.
Its columns are all lines along the axis, of all images of a head. The last product adds up the ranks and the skip. The
gradient of a kernel is gathered by blocks of diagonals: all tiles of the matrix with the same t - s have one sum in
registers.

Bounds, computed and not measured. In memory: 2 D + 1 tensors forward (D axes, each read and written, and the skip's
signal), and about three times as many backward. In arithmetic: n FLOP a byte for an axis of n samples in 16 bits, which
tensor cores of an H100 do faster than memory below n = 295. float32 without TF32 has no tensor cores: 67 TFLOP/s there,
and arithmetic is the bound above n = 40, whatever is fused.

Shapes: B images, H heads, C kernels per head, R rank, pair q = c R + r of Q = C R; before and after the axis of n samples lie
lines, of which `inner` are neighbours.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from s4nd.conv._triton_tiles import by_pair, central, diagonal_sums, toeplitz
from s4nd.ops._triton import REGISTERS, at_work_on

LINES = 64  # of a tile
OPTIONS = {"num_warps": 8, **REGISTERS}
PROGRAMS = 512  # for the gradients of kernels, before one takes more lines
SIZES = ("H", "O", "S", "J", "R", "n", "inner", "lines", "total", "Q", "Z", "part")


@triton.jit
def _line(j, per_image, inner, n, ahead):
    """Where line j of all images begins: (image, before, after) in this order."""
    image, within = j // per_image, j % per_image
    return image.to(tl.int64) * ahead + (within // inner * (n * inner) + within % inner)


@triton.jit(do_not_specialize=SIZES)
def along(
    x, k, v, skip, y, H, O, S, J, R, n, inner, lines, total,  # noqa: E741
    LAST: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output o of O of x (B, J, H, ..) -> y (B, O, H, ..), a sum over S pairs, plus skip (C, H) times v (B, C or 1, H, ..).

    lines: of an image. total: of all. LAST: the axis is the last one, and inner 1.
    """
    head = tl.program_id(0) % (H * O)
    h, o = head % H, head // H
    dtype: tl.constexpr = x.dtype.element_ty
    if LAST:
        inner = 1
    j = tl.program_id(0) // (H * O) * LINES + tl.arange(0, LINES)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    size = lines * n + tl.zeros((), tl.int64)  # an index of 32 bits would overflow beyond 2^31 samples
    result = tl.zeros((ROWS, LINES), dtype=tl.float32)
    source = _line(j, lines, inner, n, J * H * size)
    for i in range(0, S):
        q = o * S + i
        for start in range(0, n, DEPTH):
            s = start + tl.arange(0, DEPTH)
            T = toeplitz(k + (q * H + h) * (2 * n - 1), t[:, None], s[None, :], n, n, 1).to(dtype)
            at = (x + (q * J // (O * S) * H + h) * size + source)[None, :] + s[:, None] * inner
            X = tl.load(at, mask=(s < n)[:, None] & (j < total)[None, :], other=0.0)
            result = tl.dot(T, X, result, input_precision=PRECISION)
    inside = (t < n)[:, None] & (j < total)[None, :]
    if v is not None:
        C = O * S // R
        V = 1 if O > 1 else C  # v is u, for outputs of all kernels, or a gradient, of each
        for c in range(o * S // R, (o + 1) * S // R):
            signal = v + (c * V // C * H + h) * size + _line(j, lines, inner, n, V * H * size)
            V_tile = tl.load(signal[None, :] + t[:, None] * inner, mask=inside, other=0.0)
            result += tl.load(skip + c * H + h) * V_tile.to(tl.float32)
    target = y + (o * H + h) * size + _line(j, lines, inner, n, O * H * size)
    tl.store(target[None, :] + t[:, None] * inner, result.to(dtype), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def along_gradient(
    z, x, out, H, Q, Z, J, n, inner, lines, total, part,
    LAST: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of z (B, Z, H, ..), the gradient of y, and x (B, J, H, ..): out (parts, Q, H, blocks, 2 ROWS), float32.

    Block number d + m - 1 of 2 m - 1, m blocks of ROWS to the axis, has the lags from (d - 1) ROWS on, as far as the tiles with
    t - s between d - 1 and d + 1 blocks have a part in them. part: lines of a program.
    """
    h, q = tl.program_id(0) % H, tl.program_id(0) // H
    if LAST:
        inner = 1
    size, rows = lines * n + tl.zeros((), tl.int64), tl.arange(0, ROWS)
    blocks = tl.cdiv(n, ROWS)
    d = tl.program_id(1) - (blocks - 1)
    D = tl.zeros((ROWS, ROWS), dtype=tl.float32)
    first = tl.program_id(2) * part
    for start in range(first, tl.minimum(first + part, total), LINES):
        j = start + tl.arange(0, LINES)
        z_line = z + (q * Z // Q * H + h) * size + _line(j, lines, inner, n, Z * H * size)
        x_line = x + (q * J // Q * H + h) * size + _line(j, lines, inner, n, J * H * size)
        for block in range(tl.maximum(d, 0), blocks + tl.minimum(d, 0)):
            t, s = block * ROWS + rows, (block - d) * ROWS + rows
            inside = (t < n)[:, None] & (j < total)[None, :]
            G = tl.load(z_line[None, :] + t[:, None] * inner, mask=inside, other=0.0)
            inside = (s < n)[None, :] & (j < total)[:, None]
            Xt = tl.load(x_line[:, None] + s[None, :] * inner, mask=inside, other=0.0)
            D = tl.dot(G, Xt, D, input_precision=PRECISION)
    result = (tl.program_id(2) * Q * H + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
    sums = diagonal_sums(D, rows, rows * 0, ROWS, 1, ROWS)
    tl.store(out + result * (2 * ROWS) + tl.arange(0, 2 * ROWS), sums)


def forward(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None) -> Tensor:
    """u (B, H, n_1, ..., n_D), D kernels (R, C, H, 2n_i - 1) and skip (C, H), float32 -> (B, C, H, n_1, ..., n_D)."""
    u, kernels = u.contiguous()[:, None], by_pair(kernels)
    x = _signals(u, kernels)[0]
    return _along(x, kernels[0], 0, outputs=kernels[0].shape[0], v=u, skip=skip)


def backward(
    grad: Tensor, u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of u, skip and the kernels, float32 but that of u, given that of y; None where `needed` is false."""
    of_u, of_skip, *of_kernels = needed
    grad, u, kernels = grad.contiguous(), u.contiguous()[:, None], by_pair(kernels)
    C, R, D = *kernels[0].shape[:2], len(kernels)
    signals = _signals(u, kernels) if any(of_kernels[:-1]) else [u] * D  # the last is all that is read
    z, grad_k = grad, []
    for axis, k in enumerate(kernels):
        grad_k.append(_kernel_gradient(z, signals[axis], k, axis) if of_kernels[axis] else None)
        if axis < D - 1:
            z = _along(z, k.flip(-1), axis, outputs=C * R)  # a reversed kernel has the transposed matrix
    grad_u = _along(z, kernels[-1].flip(-1), D - 1, outputs=1, v=grad, skip=skip)[:, 0] if of_u else None
    # Products of 16 bits are exact in float32.
    grad_skip = (grad.float() * u.float()).flatten(3).sum((0, 3)) if of_skip else None
    return [grad_u, grad_skip, *grad_k]


def _signals(u: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """What each axis's matrix is applied to: u, last, and before it the products of all later axes."""
    signals = [u]
    for axis in range(len(kernels) - 1, 0, -1):
        k = kernels[axis]
        signals.insert(0, _along(signals[0], k, axis, outputs=k.shape[0] * k.shape[1]))
    return signals


def _along(
    x: Tensor, k: Tensor, axis: int, *, outputs: int, v: Tensor | None = None, skip: Tensor | None = None
) -> Tensor:
    """x (B, J, H, *axes), k (C, R, H, 2n - 1) -> (B, outputs, H, *axes), plus skip times v."""
    (C, R, H), (B, J) = k.shape[:3], x.shape[:2]
    y = x.new_empty(B, outputs, *x.shape[2:])
    n, inner, lines = _lines(x, axis)
    rows, depth, precision = tiles(x.dtype, n)
    grid = -(-B * lines // LINES) * H * outputs, -(-n // rows)
    with at_work_on(x.device):
        along[grid](
            x, k, None if skip is None else v, skip, y, H, outputs, C * R // outputs, J, R, n, inner, lines, B * lines,
            LAST=inner == 1, ROWS=rows, DEPTH=depth, LINES=LINES, PRECISION=precision, **OPTIONS,
        )  # fmt: skip
    return y


def _kernel_gradient(z: Tensor, x: Tensor, k: Tensor, axis: int) -> Tensor:
    """Gradient (R, C, H, 2n - 1) of k (C, R, H, 2n - 1), where z (B, 1, C or C R, H, *axes) is that of its product with x."""
    C, R, H = k.shape[:3]
    n, inner, lines = _lines(x, axis)
    rows, depth, precision = tiles(x.dtype, n)
    blocks, total = -(-n // rows), len(x) * lines
    programs = -(-total // depth) * C * R * H * (2 * blocks - 1)
    part = depth * max(1, programs // PROGRAMS)
    parts = -(-total // part)
    out = x.new_empty(parts, C, R, H, 2 * blocks - 1, 2 * rows, dtype=torch.float32)
    with at_work_on(x.device):
        along_gradient[(C * R * H, 2 * blocks - 1, parts)](
            z, x, out, H, C * R, z.shape[1], x.shape[1], n, inner, lines, total, part,
            LAST=inner == 1, ROWS=rows, LINES=depth, PRECISION=precision, **OPTIONS,
        )  # fmt: skip
    early, late = out.sum(0).unflatten(-1, (2, rows)).unbind(-2)  # lags before and after a block's own first
    sums = F.pad(early.flatten(-2), (0, rows)) + F.pad(late.flatten(-2), (rows, 0))
    return central(sums, n).transpose(0, 1)


def _lines(x: Tensor, axis: int) -> tuple[int, int, int]:
    """n, inner and the number of lines of an image, of x (B, J, H, *axes)."""
    n, inner = x.shape[axis + 3], math.prod(x.shape[axis + 4 :])
    return n, inner, math.prod(x.shape[3:]) // n


def tiles(dtype: torch.dtype, n: int) -> tuple[int, int, str]:
    """Rows of a tile, samples that a product sums over at once, and its precision: as much as registers hold."""
    rows = min(64, max(16, triton.next_power_of_2(n)))
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return rows, 16, "ieee"
    return rows, min(rows, 32), "tf32"
