"""Cauchy product: the generating functions of diagonal state-space models, for each pair of a row and a column, at the nodes z.

    f_ij(z_m) = sum_n u_in v_jn / (z_m - w_n) + conj(u_in v_jn) / (z_m - conj(w_n))

Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", 2021, arXiv:2111.00396, section 3.2.

Shapes: I rows u and J columns v per head, H heads, N poles (one of each conjugate pair), M nodes, h heads of a block.
Complex tensors are real pairs (..., 2).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from s4nd.ops import double_backward, pairs
from s4nd.ops.blocks import head_blocks


def cauchy_definition(u: Tensor, v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """The sum as it is written: the oracle of every other form.

    Args:
        u: (I, H, N, 2) rows.
        v: (J, H, N, 2) columns.
        w: (H, N, 2) poles; no node may lie on a pole or on its conjugate.
        z: (M, 2) nodes, constants.

    Returns:
        (I, J, H, M, 2).
    """
    top = pairs.mul(u[:, None], v[None])[:, :, :, :, None]
    w, z = w[:, :, None], z[None, None]
    terms = pairs.div(top, z - w) + pairs.div(pairs.conj(top), z - pairs.conj(w))  # (I, J, H, N, M, 2)
    return terms.sum(3)


def cauchy_torch(u: Tensor, v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` by one matrix of reciprocals for all functions of a head; same arguments and result."""
    return (_Cauchy.apply if pairs.complex_views(u) else cauchy_definition)(u, v, w, z)


class _Cauchy(torch.autograd.Function):
    """With w = a + ib, a pair of poles gives 2 (z alpha - beta) r where alpha = Re uv, beta = Re(uv conj w) and
    r = 1 / ((z - w) (z - conj w)): all functions of a head are real products with the same complex r (H, M, N).

    The gradients of uv are products with r, those of w products with r^2, because dr = -r^2 d((z - a)^2 + b^2)."""

    @staticmethod
    def forward(u: Tensor, v: Tensor, w: Tensor, z: Tensor) -> Tensor:
        I, H, _, _ = u.shape  # noqa: E741
        f = u.new_empty(I * len(v), H, len(z), 2)
        z_re, z_im = (2 * z).unbind(-1)
        for heads in _blocks(u, v, z):
            weights = _alpha_beta(_products(u, v, heads), w[heads])
            (x_re, y_re), (x_im, y_im) = (torch.bmm(weights, r.mT).chunk(2, dim=1) for r in _reciprocals(w[heads], z))
            re, im = f[:, heads].transpose(0, 1).unbind(-1)  # (h, IJ, M)
            torch.mul(x_re, z_re, out=re).sub_(y_re, alpha=2).addcmul_(x_im, z_im, value=-1)
            torch.mul(x_im, z_re, out=im).sub_(y_im, alpha=2).addcmul_(x_re, z_im)
        return f.unflatten(0, (I, -1))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, v, w, z = ctx.saved_tensors
        if double_backward.wanted():
            return double_backward.by_definition(cauchy_definition, (u, v, w, z), grad)
        grad_u, grad_v, grad_w = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, v, w))
        for heads in _blocks(u, v, z):
            of_products, of_w = _block_grads(_products(u, v, heads), w[heads], z, grad[:, :, heads].flatten(0, 1))
            of_products = of_products.unflatten(1, (len(u), len(v)))  # (h, I, J, N) complex
            rows, columns = (pairs.view(x[:, heads]).transpose(0, 1) for x in (u, v))  # (h, I, N), (h, J, N)
            pairs.view(grad_u)[:, heads] = (of_products * columns[:, None].conj()).sum(2).transpose(0, 1)
            pairs.view(grad_v)[:, heads] = (of_products * rows[:, :, None].conj()).sum(1).transpose(0, 1)
            pairs.view(grad_w)[heads] = of_w
        return grad_u, grad_v, grad_w, None


def _blocks(u: Tensor, v: Tensor, z: Tensor) -> Iterator[slice]:
    """Heads whose matrices (M, N), of which there are several at a time, or whose moments (3IJ, N) fit the cache in float64."""
    I, H, N, _ = u.shape  # noqa: E741
    return head_blocks(H, 4 * N * max(len(z), 3 * I * len(v)), u.device)


def _products(u: Tensor, v: Tensor, heads: slice) -> Tensor:
    """u_i v_j: (h, IJ, N) complex."""
    rows, columns = (pairs.view(x[:, heads]).transpose(0, 1) for x in (u, v))
    return (rows[:, :, None] * columns[:, None]).flatten(1, 2)


def _alpha_beta(products: Tensor, w: Tensor) -> Tensor:
    """Re uv and Re(uv conj w) below each other: (h, 2IJ, N)."""
    a, b = w[:, None].unbind(-1)
    out = w.new_empty(len(products), 2, *products.shape[1:])
    alpha, beta = out.unbind(1)
    alpha.copy_(products.real)
    torch.mul(alpha, a, out=beta).addcmul_(products.imag, b)
    return out.flatten(1, 2)


def _reciprocals(w: Tensor, z: Tensor) -> Tensor:
    """1 / ((z - w) (z - conj w)): (2, h, M, N), the real and the imaginary parts."""
    a, b = w[:, None].unbind(-1)  # (h, 1, N)
    x, y = z[:, None].unbind(-1)  # (M, 1)
    from_a = x - a
    r = w.new_empty(2, *from_a.shape)
    re, im = r
    torch.sub(b.square(), y.square(), out=re).addcmul_(from_a, from_a)
    torch.mul(from_a, -2 * y, out=im)
    r /= torch.mul(re, re, out=from_a).addcmul_(im, im)
    return r


def _block_grads(products: Tensor, w: Tensor, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the products (h, IJ, N) and of w (h, N), complex, from that of the functions (IJ, h, M, 2)."""
    moments = _moments(grad.transpose(0, 1), z)
    r = _reciprocals(w, z)
    t0, t1 = _inner(moments[:, :, : -len(grad)], r).chunk(2, dim=1)  # (h, IJ, N)
    square = torch.empty_like(r)
    torch.mul(r[0], r[0], out=square[0]).addcmul_(r[1], r[1], value=-1)
    torch.mul(r[0], r[1], out=square[1]).mul_(2)
    u0, u1, u2 = _inner(moments, square).chunk(3, dim=1)
    a, b = w[:, None].unbind(-1)  # (h, 1, N)
    alpha, beta = _alpha_beta(products, w).chunk(2, dim=1)
    first = (alpha * u1).addcmul_(beta, u0, value=-1)
    second = (alpha * u2).addcmul_(beta, u1, value=-1).addcmul_(a, first, value=-1)
    of_a = 2 * second.sum(1) - (t0 * alpha).sum(1)
    of_b = -2 * b[:, 0] * first.sum(1) - (t0 * products.imag).sum(1)
    of_products = torch.empty_like(products)
    torch.addcmul(t1, a, t0, value=-1, out=of_products.real)
    torch.mul(t0, -b, out=of_products.imag)
    return of_products, torch.complex(of_a, of_b)


def _moments(grad: Tensor, z: Tensor) -> Tensor:
    """2 grad, 2 conj(z) grad and 2 conj(z)^2 grad below each other: (h, C, M, 2) -> (2, h, 3C, M)."""
    h, C, M, _ = grad.shape
    out = grad.new_empty(2, h, 3, C, M)
    x, y = z.unbind(-1)
    torch.mul(grad.movedim(-1, 0), 2, out=out[:, :, 0])
    for power in (1, 2):
        (re, im), (new_re, new_im) = out[:, :, power - 1], out[:, :, power]
        torch.mul(re, x, out=new_re).addcmul_(im, y)
        torch.mul(im, x, out=new_im).addcmul_(re, y, value=-1)
    return out.flatten(2, 3)


def _inner(g: Tensor, r: Tensor) -> Tensor:
    """sum_m Re(conj r_m g_m): g (2, h, C, M), r (2, h, M, N) -> (h, C, N)."""
    return torch.bmm(g[0], r[0]).baddbmm_(g[1], r[1])
