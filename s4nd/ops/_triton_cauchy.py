"""Triton form of the Cauchy product: every quotient is computed where it is summed, no N x L matrix is ever held.

A program has one head, a few responses, and a block of nodes (values, gradients of nodes) or of poles (gradients of weights and
poles); it runs over the other axis. Arithmetic is real, see ops/cauchy.py, and in float64, as there: the parts of a pair take
more roundings than its quotients.

Written for CUDA; with TRITON_INTERPRET=1, set before this module is imported, numpy runs the same programs on a CPU.
Shapes as in ops/cauchy.py. Index arithmetic is in 64 bits: no size overflows it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4nd.ops import autodiff, operators
from s4nd.ops._triton import PART, POLES, REGISTERS, SAMPLES, SIZES, STEP, at_work_on, responses
from s4nd.ops.cauchy import cauchy_definition
from s4nd.ops.precision import wide


def cauchy_triton(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` in one pass over the poles; same arguments and result."""
    z = z.expand(len(x), *z.shape[-2:])
    if operators.serve(x) or operators.is_fake(x):
        return _operator(w, x, z)
    if autodiff.is_transformed():
        return cauchy_definition(w, x, z)
    return autodiff.Own.apply(cauchy_definition, _product, _gradients, w, x, z)


@triton.jit
def _halves(t, above, below):
    """Real and imaginary part of the half sum E and of F, see ops/cauchy.py."""
    upper, lower = 0.5 / (t * t + above * above), 0.5 / (t * t + below * below)
    return t * (upper + lower), -above * upper - below * lower, below * lower - above * upper, t * (lower - upper)


@triton.jit
def _squares(e, e_im, f, f_im):
    """Real and imaginary part of U = E^2 - F^2 and V = F E."""
    return (
        e * e - e_im * e_im - (f * f - f_im * f_im),
        2 * (e * e_im - f * f_im),
        e * f - e_im * f_im,
        e * f_im + e_im * f,
    )


@triton.jit
def _pair(at, mask, other: tl.constexpr):
    """A real pair in float64."""
    return tl.load(at, mask=mask, other=other).to(tl.float64), tl.load(at + 1, mask=mask, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=SIZES)
def _cauchy(w, x, z, k, z_head, J, H, N, L, BLOCK_J: tl.constexpr, BLOCK: tl.constexpr):
    """k (J, H, L, 2) of w (J, H, N, 2), x (H, N, 2) and z (H or 1, L, 2), whose heads are z_head numbers apart."""
    h = tl.program_id(1).to(tl.int64)
    l = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # noqa: E741
    j = (tl.program_id(2) * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)
    node, node_im = _pair(z + h * z_head + 2 * l, l < L, 1.0)
    re = tl.zeros((BLOCK_J, BLOCK), dtype=tl.float64)
    im = re
    for n in range(N):
        at = h * N + n
        p, q = tl.load(x + 2 * at).to(tl.float64), tl.load(x + 2 * at + 1).to(tl.float64)
        e, e_im, f, f_im = _halves(node - p, node_im - q, node_im + q)
        a, b = _pair(w + 2 * (j * H * N + at), j < J, 0.0)
        re += a[:, None] * e[None] - b[:, None] * f[None]
        im += a[:, None] * e_im[None] - b[:, None] * f_im[None]
    to, mask = k + 2 * ((j[:, None] * H + h) * L + l[None]), (j < J)[:, None] & (l < L)[None]
    tl.store(to, 2 * re, mask=mask)
    tl.store(to + 1, 2 * im, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _cauchy_moments(
    g,
    x,
    z,
    m,
    z_head,
    J,
    H,
    N,
    L,
    PART: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """m (S, 4, J, H, N): of the nodes of part s, the sums of Re(conj(g) y) for y = E, F, U and V."""
    h, part = tl.program_id(1).to(tl.int64), tl.program_id(0) // tl.cdiv(N, BLOCK_N)
    n = tl.program_id(0) % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = (tl.program_id(2) * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)
    p, q = _pair(x + 2 * (h * N + n), n < N, -1.0)
    of_e = tl.zeros((BLOCK_J, BLOCK_N), dtype=tl.float64)
    of_f, of_u, of_v = of_e, of_e, of_e
    for start in range(part * PART, tl.minimum((part + 1) * PART, L), STEP):
        l = (start + tl.arange(0, STEP)).to(tl.int64)  # noqa: E741
        node, node_im = _pair(z + h * z_head + 2 * l, l < L, 1.0)
        e, e_im, f, f_im = _halves((node[:, None] - p[None]), node_im[:, None] - q[None], node_im[:, None] + q[None])
        u, u_im, v, v_im = _squares(e, e_im, f, f_im)  # (STEP, BLOCK_N)
        re, im = _pair(g + 2 * ((j[:, None] * H + h) * L + l[None]), (j < J)[:, None] & (l < L)[None], 0.0)
        re, im = re[:, :, None], im[:, :, None]
        of_e += tl.sum(re * e[None] + im * e_im[None], 1)
        of_f += tl.sum(re * f[None] + im * f_im[None], 1)
        of_u += tl.sum(re * u[None] + im * u_im[None], 1)
        of_v += tl.sum(re * v[None] + im * v_im[None], 1)
    to, mask = m + ((part * 4 * J + j[:, None]) * H + h) * N + n[None], (j < J)[:, None] & (n < N)[None]
    further = J.to(tl.int64) * H * N
    tl.store(to, of_e, mask=mask)
    tl.store(to + further, of_f, mask=mask)
    tl.store(to + 2 * further, of_u, mask=mask)
    tl.store(to + 3 * further, of_v, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _cauchy_of_nodes(g, w, x, z, of_z, z_head, J, H, N, L, BLOCK_J: tl.constexpr, BLOCK: tl.constexpr):
    """of_z (H, L, 2): minus the sum over j and n of g conj(2 Re(w) U - 4 Im(w) V)."""
    h = tl.program_id(1).to(tl.int64)
    l = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # noqa: E741
    node, node_im = _pair(z + h * z_head + 2 * l, l < L, 1.0)
    sum_re = tl.zeros((BLOCK,), dtype=tl.float64)
    sum_im = sum_re
    for first in range(0, J, BLOCK_J):
        j = (first + tl.arange(0, BLOCK_J)).to(tl.int64)
        s = tl.zeros((BLOCK_J, BLOCK), dtype=tl.float64)
        s_im = s
        for n in range(N):
            at = h * N + n
            p, q = tl.load(x + 2 * at).to(tl.float64), tl.load(x + 2 * at + 1).to(tl.float64)
            e, e_im, f, f_im = _halves(node - p, node_im - q, node_im + q)
            u, u_im, v, v_im = _squares(e, e_im, f, f_im)
            a, b = _pair(w + 2 * (j * H * N + at), j < J, 0.0)
            s += 2 * a[:, None] * u[None] - 4 * b[:, None] * v[None]
            s_im += 2 * a[:, None] * u_im[None] - 4 * b[:, None] * v_im[None]
        re, im = _pair(g + 2 * ((j[:, None] * H + h) * L + l[None]), (j < J)[:, None] & (l < L)[None], 0.0)
        sum_re += tl.sum(re * s + im * s_im, 0)
        sum_im += tl.sum(im * s - re * s_im, 0)
    to = of_z + 2 * (h * L + l)
    tl.store(to, -sum_re, mask=l < L)
    tl.store(to + 1, -sum_im, mask=l < L)


def _product(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    J, (H, N), L, block = len(w), x.shape[:2], z.shape[1], responses(len(w))
    k, z = w.new_empty(J, H, L, 2), _nodes(z)
    grid = triton.cdiv(L, SAMPLES), H, triton.cdiv(J, block)
    with at_work_on(x.device):
        _cauchy[grid](w.contiguous(), x.contiguous(), z, k, z.stride(0), J, H, N, L, BLOCK_J=block, BLOCK=SAMPLES)
    return k


def _gradients(
    grad: Tensor, w: Tensor, x: Tensor, z: Tensor, needed: tuple[bool, ...] = (True,) * 3
) -> tuple[Tensor | None, ...]:
    J, (H, N), L, block = len(w), x.shape[:2], z.shape[1], responses(len(w))
    g, weights, x, z = grad.contiguous(), w.contiguous(), x.contiguous(), _nodes(z)
    m = wide(w).new_empty(triton.cdiv(L, PART), 4, J, H, N)
    grid = len(m) * triton.cdiv(N, POLES), H, triton.cdiv(J, block)
    sizes = z.stride(0), J, H, N, L
    with at_work_on(x.device):
        _cauchy_moments[grid](g, x, z, m, *sizes, PART=PART, STEP=STEP, BLOCK_J=block, BLOCK_N=POLES, **REGISTERS)
    a, b, u, v = m.sum(0)
    re, im = wide(w).unbind(-1)
    of_w = torch.stack([2 * a, -2 * b], -1).to(w.dtype)
    of_x = torch.stack([(2 * re * u - 4 * im * v).sum(0), (-2 * im * u - 4 * re * v).sum(0)], -1).to(x.dtype)
    if not needed[2]:
        return of_w, of_x, None
    of_z = z.new_empty(H, L, 2)
    with at_work_on(x.device):
        _cauchy_of_nodes[triton.cdiv(L, SAMPLES), H](g, weights, x, z, of_z, *sizes, BLOCK_J=block, BLOCK=SAMPLES)
    return of_w, of_x, of_z


def _nodes(z: Tensor) -> Tensor:
    """(H, L, 2) whose heads may be one in memory."""
    return z if z.stride()[1:] == (2, 1) else z.contiguous()


_operator = operators.operator(
    "cauchy_triton(Tensor w, Tensor x, Tensor z) -> Tensor",
    _product,
    lambda w, x, z: w.new_empty(*w.shape[:2], z.shape[1], 2),
    heads=(1, 0, 0),
    out_heads=(1,),
)
_gradients_operator = operators.operator(
    "cauchy_triton_gradients(Tensor grad, Tensor w, Tensor x, Tensor z) -> (Tensor, Tensor, Tensor)",
    _gradients,
    lambda grad, w, x, z: (w.new_empty(w.shape), x.new_empty(x.shape), z.new_empty(z.shape)),
    heads=(1, 1, 0, 0),
    out_heads=(1, 0, 0),
)
operators.differentiate(_operator, _gradients_operator)
