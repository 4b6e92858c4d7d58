"""Cauchy product: the generating function of a diagonal state-space model at the nodes z.

    f(z_j) = sum_n v_n / (z_j - w_n) + conj(v_n) / (z_j - conj(w_n))

Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", 2021, arXiv:2111.00396, section 3.2.

Shapes: C functions per head, H heads, N poles (one of each conjugate pair), M nodes. Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import double_backward, pairs


def cauchy_definition(v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """The sum as it is written: the oracle of every other form.

    Args:
        v: (C, H, N, 2) weights.
        w: (H, N, 2) poles; no node may lie on a pole or on its conjugate.
        z: (M, 2) nodes.

    Returns:
        (C, H, M, 2).
    """
    v, w, z = v[:, :, :, None], w[:, :, None], z[None, None]
    terms = pairs.div(v, z - w) + pairs.div(pairs.conj(v), z - pairs.conj(w))  # (C, H, N, M, 2)
    return terms.sum(2)


class _Cauchy(torch.autograd.Function):
    """With w = a + ib, a pair of poles gives 2 (z alpha - beta) r where alpha = Re v, beta = Re(v conj w) and
    r = 1 / ((z - w) (z - conj w)): all functions of a head are real products with the same complex r (H, M, N).

    The gradients of v are products with r, those of w products with r^2, because dr = -r^2 d((z - a)^2 + b^2)."""

    @staticmethod
    def forward(v: Tensor, w: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        r = _reciprocals(w, z)
        weights = torch.cat(_alpha_beta(v, w)).transpose(0, 1)  # (H, 2C, N)
        (x_re, y_re), (x_im, y_im) = (torch.bmm(weights, part.mT).chunk(2, dim=1) for part in r)  # (H, C, M)
        z_re, z_im = 2 * z[:, 0], 2 * z[:, 1]
        re = torch.mul(x_re, z_re).sub_(y_re, alpha=2).addcmul_(x_im, z_im, value=-1)
        im = torch.mul(x_im, z_re).sub_(y_im, alpha=2).addcmul_(x_re, z_im)
        return pairs.pair(re, im).transpose(0, 1), r

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # r's own would be zeros of r's size
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx, grad: Tensor | None, _) -> tuple[Tensor | None, Tensor | None, None]:
        if grad is None:
            return None, None, None
        v, w, z, r = ctx.saved_tensors
        if double_backward.wanted():
            return double_backward.by_definition(cauchy_definition, (v, w, z), grad)
        moments = _moments(2 * grad.transpose(0, 1), z)  # (2, H, 3C, M)
        C = len(v)
        t0, t1 = _inner(moments[:, :, : 2 * C], r).chunk(2)  # (C, H, N)
        square = torch.empty_like(r)
        torch.mul(r[0], r[0], out=square[0]).addcmul_(r[1], r[1], value=-1)
        torch.mul(r[0], r[1], out=square[1]).mul_(2)
        u0, u1, u2 = _inner(moments, square).chunk(3)
        a, b = w.unbind(-1)
        alpha, beta = _alpha_beta(v, w)
        moment = (alpha * u1 - beta * u0).sum(0)
        grad_a = 2 * ((alpha * u2 - beta * u1).sum(0) - a * moment) - (t0 * v[..., 0]).sum(0)
        grad_b = -2 * b * moment - (t0 * v[..., 1]).sum(0)
        return pairs.pair(t1 - a * t0, -b * t0), pairs.pair(grad_a, grad_b), None


def _reciprocals(w: Tensor, z: Tensor) -> Tensor:
    """1 / ((z - w) (z - conj w)): (2, H, M, N), the real and the imaginary parts."""
    a, b = w[:, None].unbind(-1)  # (H, 1, N)
    x, y = z[:, None].unbind(-1)  # (M, 1)
    from_a = x - a
    r = w.new_empty(2, *from_a.shape)
    re, im = r
    torch.sub(b.square(), y.square(), out=re).addcmul_(from_a, from_a)
    torch.mul(from_a, -2 * y, out=im)
    r /= torch.mul(re, re, out=from_a).addcmul_(im, im)
    return r


def _alpha_beta(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Re v, Re(v conj w): (C, H, N) each."""
    return v[..., 0], v[..., 0] * w[..., 0] + v[..., 1] * w[..., 1]


def _moments(g: Tensor, z: Tensor) -> Tensor:
    """g, conj(z) g and conj(z)^2 g below each other: (H, C, M, 2) -> (2, H, 3C, M), the real and the imaginary parts."""
    H, C, M, _ = g.shape
    out = g.new_empty(2, H, 3 * C, M)
    x, y = z.unbind(-1)
    re, im = g.unbind(-1)
    for power in range(3):
        new_re, new_im = out[:, :, power * C : (power + 1) * C]
        if power == 0:
            new_re.copy_(re), new_im.copy_(im)
        else:
            torch.mul(re, x, out=new_re).addcmul_(im, y)
            torch.mul(im, x, out=new_im).addcmul_(re, y, value=-1)
        re, im = new_re, new_im
    return out


def _inner(g: Tensor, r: Tensor) -> Tensor:
    """sum_m Re(conj r_m g_m): g (2, H, C, M), r (2, H, M, N) -> (C, H, N)."""
    return torch.baddbmm(torch.bmm(g[0], r[0]), g[1], r[1]).transpose(0, 1)


def cauchy_torch(v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` by one matrix of reciprocals for all functions of a head; same arguments and result. The nodes z
    get no gradient."""
    return cauchy_definition(v, w, z) if torch.compiler.is_compiling() else _Cauchy.apply(v, w, z)[0]
