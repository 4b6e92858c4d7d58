"""Triton form of the Vandermonde product: every term is computed where it is summed, no N x L matrix is ever held.

A program has one head, a few responses, and a block of samples (values) or of poles (gradients); it runs over the other axis.
Arithmetic is real. Phases l Im x are multiplied in float64 and brought into half a turn before they are rounded, so that a late
sample loses no digit.

Written for CUDA; with TRITON_INTERPRET=1, set before this module is imported, numpy runs the same programs on a CPU.
Shapes as in ops/vandermonde.py. Index arithmetic is in 64 bits: no size overflows it.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4nd.ops import autodiff, operators
from s4nd.ops.precision import wide
from s4nd.ops.vandermonde import vandermonde_definition

RESPONSES = 8  # of a program, at most
SAMPLES, POLES = 128, 16  # of a block
STEP = 16  # samples at a time in sums over samples
PART = 4096  # samples of one such sum; the parts are added afterwards, in one order
# All that a thread may have. Without a number ptxas spills some of them, so that more programs are resident at once.
REGISTERS = {"maxnreg": 255}
# Not specialised: a size of 1 would be another kind of number in a program, and every kind a compilation of its own.
SIZES = ("J", "H", "N", "L", "z_head")


def responses(J: int) -> int:
    """Of one program: a power of two, as all of Triton's tiles."""
    return min(RESPONSES, triton.next_power_of_2(J))


def at_work_on(device: torch.device) -> AbstractContextManager:
    """Programs start on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def vandermonde_triton(w: Tensor, x: Tensor, L: int, centre: bool = False) -> Tensor:
    """`vandermonde_definition` in one pass over the modes; same arguments and result."""
    if operators.serve(x) or operators.is_fake(x):
        return _operator(w, x, L, centre)
    if autodiff.is_transformed():
        return vandermonde_definition(w, x, L, centre)
    return autodiff.Own.apply(vandermonde_definition, _product, _gradients, w, x, L, centre)


@triton.jit
def _exp(lag, re, im, dtype: tl.constexpr):
    """Real and imaginary part of exp(l x)."""
    phase = lag * im
    if dtype != tl.float64:
        turn = tl.full((), 6.283185307179586, tl.float64)
        phase = phase - turn * tl.floor(phase / turn + 0.5)
    size, phase = tl.exp((lag * re).to(dtype)), phase.to(dtype)
    return size * tl.cos(phase), size * tl.sin(phase)


@triton.jit
def _sample(lag, re, im, dtype: tl.constexpr, CENTRE: tl.constexpr):
    """Real and imaginary part of what sample l takes of a mode: exp(l x); centred exp((2l-1) x) + exp(2l x), and 1 for l = 0.
    And of its derivative by x, in float64, as lag is."""
    if CENTRE:
        early, early_im = _exp(2 * lag - 1, re, im, dtype)
        late, late_im = _exp(2 * lag, re, im, dtype)
        first = lag == 0
        q, q_im = tl.where(first, 1.0, early + late), tl.where(first, 0.0, early_im + late_im)
        slope = tl.where(first, 0.0, (2 * lag - 1) * early + 2 * lag * late)
        slope_im = tl.where(first, 0.0, (2 * lag - 1) * early_im + 2 * lag * late_im)
    else:
        q, q_im = _exp(lag, re, im, dtype)
        slope, slope_im = lag * q, lag * q_im
    return q, q_im, slope, slope_im


@triton.jit(do_not_specialize=SIZES)
def _vandermonde(w, x, k, J, H, N, L, BLOCK_J: tl.constexpr, BLOCK: tl.constexpr, CENTRE: tl.constexpr):
    """k (J, H, L) of w (J, H, N, 2) and x (H, N, 2) float64."""
    h = tl.program_id(1).to(tl.int64)
    l = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # noqa: E741
    j = tl.program_id(2) * BLOCK_J + tl.arange(0, BLOCK_J)
    dtype = k.dtype.element_ty
    sum_j = tl.zeros((BLOCK_J, BLOCK), dtype=dtype)
    for n in range(N):
        at = h * N + n
        q, q_im, _, _ = _sample(l.to(tl.float64), tl.load(x + 2 * at), tl.load(x + 2 * at + 1), dtype, CENTRE)
        of = w + 2 * (j.to(tl.int64) * H * N + at)
        a, b = tl.load(of, mask=j < J, other=0.0), tl.load(of + 1, mask=j < J, other=0.0)
        sum_j += a[:, None] * q[None] - b[:, None] * q_im[None]
    to = k + (j.to(tl.int64)[:, None] * H + h) * L + l[None]
    tl.store(to, 2 * sum_j, mask=(j < J)[:, None] & (l < L)[None])


@triton.jit(do_not_specialize=SIZES)
def _vandermonde_moments(
    g,
    x,
    m,
    J,
    H,
    N,
    L,
    PART: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRE: tl.constexpr,
):
    """m (S, 2, J, H, N, 2) float64: of the samples of part s, the sums of 2 g and the conjugate of what a sample takes, and of
    2 g and that of its derivative."""
    h, part = tl.program_id(1).to(tl.int64), tl.program_id(0) // tl.cdiv(N, BLOCK_N)
    n = tl.program_id(0) % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = (tl.program_id(2) * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)
    at = x + 2 * (h * N + n)
    re, im = tl.load(at, mask=n < N, other=0.0)[None], tl.load(at + 1, mask=n < N, other=0.0)[None]
    dtype = g.dtype.element_ty
    a = tl.zeros((BLOCK_J, BLOCK_N), dtype=tl.float64)
    b, c, d = a, a, a
    for start in range(part * PART, tl.minimum((part + 1) * PART, L), STEP):
        l = start + tl.arange(0, STEP)  # noqa: E741
        q, q_im, slope, slope_im = _sample(l.to(tl.float64)[:, None], re, im, dtype, CENTRE)  # (STEP, BLOCK_N)
        of = tl.load(g + (j[:, None] * H + h) * L + l[None], mask=(j < J)[:, None] & (l < L)[None], other=0.0)
        of = of.to(tl.float64)[:, :, None]
        a += tl.sum(of * q[None], 1)
        b += tl.sum(of * q_im[None], 1)
        c += tl.sum(of * slope[None], 1)
        d += tl.sum(of * slope_im[None], 1)
    to, mask = m + 2 * (((part * 2 * J + j[:, None]) * H + h) * N + n[None]), (j < J)[:, None] & (n < N)[None]
    further = 2 * J.to(tl.int64) * H * N
    tl.store(to, 2 * a, mask=mask)
    tl.store(to + 1, -2 * b, mask=mask)
    tl.store(to + further, 2 * c, mask=mask)
    tl.store(to + further + 1, -2 * d, mask=mask)


def _product(w: Tensor, x: Tensor, L: int, centre: bool) -> Tensor:
    J, (H, N) = len(w), x.shape[:2]
    k, block = w.new_empty(J, H, L), responses(J)
    grid = triton.cdiv(L, SAMPLES), H, triton.cdiv(J, block)
    with at_work_on(x.device):
        _vandermonde[grid](
            w.contiguous(), wide(x).contiguous(), k, J, H, N, L,
            BLOCK_J=block, BLOCK=SAMPLES, CENTRE=centre,
        )  # fmt: skip
    return k


def _gradients(grad: Tensor, w: Tensor, x: Tensor, L: int, centre: bool, needed: tuple = ()) -> tuple[Tensor, Tensor]:
    J, (H, N), block = len(w), x.shape[:2], responses(len(w))
    m = wide(w).new_empty(triton.cdiv(L, PART), 2, J, H, N, 2)
    grid = len(m) * triton.cdiv(N, POLES), H, triton.cdiv(J, block)
    with at_work_on(x.device):
        _vandermonde_moments[grid](
            grad.contiguous(), wide(x).contiguous(), m, J, H, N, L,
            PART=PART, STEP=STEP, BLOCK_J=block, BLOCK_N=POLES, CENTRE=centre, **REGISTERS,
        )  # fmt: skip
    of_w, slopes = m[0] if len(m) == 1 else m.sum(0)
    of_x = (torch.view_as_complex(wide(w).contiguous()).conj_physical() * torch.view_as_complex(slopes)).sum(0)
    return of_w.to(w.dtype), torch.view_as_real(of_x).to(x.dtype)


_operator = operators.operator(
    "vandermonde_triton(Tensor w, Tensor x, SymInt L, bool centre) -> Tensor",
    _product,
    lambda w, x, L, centre: w.new_empty(*w.shape[:2], L),
    heads=(1, 0, None, None),
    out_heads=(1,),
)
_gradients_operator = operators.operator(
    "vandermonde_triton_gradients(Tensor grad, Tensor w, Tensor x, SymInt L, bool centre) -> (Tensor, Tensor)",
    _gradients,
    lambda grad, w, x, L, centre: (w.new_empty(w.shape), x.new_empty(x.shape)),
    heads=(1, 1, 0, None, None),
    out_heads=(1, 0),
)
operators.differentiate(_operator, _gradients_operator)
