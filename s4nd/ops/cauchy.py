"""Cauchy product: the transfer function of a diagonal state-space model whose poles come in conjugate pairs.

    k_j[l] = sum_n w_jn / (z_l - x_n) + conj(w_jn) / (z_l - conj x_n)

Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", 2021, arXiv:2111.00396, section 3.3. With the
half sum E and the half difference i F of a pair's quotients, F_n = q_n / ((z - x_n) (z - conj x_n)) for the pole x = p + iq,

    k_j = 2 sum_n Re(w_jn) E_n - Im(w_jn) F_n,

so that all sums are products of real matrices. The two quotients share z - p = t + ib; each has its own |z - x|^2, because the
product of the two, z^2 - 2 p z + |x|^2, has no digits left beside a pole.

Shapes: J responses per head, H heads, N poles (one of each conjugate pair), L nodes. Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import autodiff, operators, pairs
from s4nd.ops.blocks import node_blocks
from s4nd.ops.precision import wide


def cauchy_definition(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """The sum as it is written, two quotients per (j, h, n, l): the oracle of every other form.

    Args:
        w: (J, H, N, 2) weights.
        x: (H, N, 2) poles.
        z: (H, L, 2) nodes, or (L, 2) for all heads; none is a pole or the conjugate of one.

    Returns:
        (J, H, L, 2).
    """
    w, x, z = w[..., None, :, :], x[..., None, :, :], z[..., None, :]
    return (pairs.div(w, z - x) + pairs.div(pairs.conj(w), z - pairs.conj(x))).sum(-2)


def cauchy_torch(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` by blocks of nodes, which the backward pass computes again; same arguments and result.

    Beyond inputs and result it holds a block: no matrix of all poles and nodes, whatever L. Blocks are in float64 where
    there is one: the parts of a pair take more roundings than its quotients.
    """
    z = z.expand(len(x), *z.shape[-2:])
    if operators.serve(x):
        return _operator(w, x, z)
    if autodiff.is_transformed() or torch.compiler.is_compiling():
        return cauchy_definition(w, x, z)
    return autodiff.Own.apply(cauchy_definition, _product, _gradients, w, x, z)


def _halves(x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Real and imaginary parts of E and of F, each (H, N, l), of poles (H, N, 2) and nodes (H, l, 2)."""
    (p, q), (a, b) = x[:, :, None].unbind(-1), z[:, None].unbind(-1)
    t, above, below = a - p, b - q, b + q  # z - x is t + i above, z - conj x is t + i below
    square = t * t
    upper = torch.addcmul(square, above, above).reciprocal_().mul_(0.5)
    lower = torch.addcmul(square, below, below, out=square).reciprocal_().mul_(0.5)
    above.mul_(upper), below.mul_(lower)
    return t * (upper + lower), -above - below, below.sub_(above), t.mul_(lower.sub_(upper))


def _weights(w: Tensor) -> Tensor:
    """(H, J, 2N): what multiplies E and F."""
    re, im = w.transpose(0, 1).unbind(-1)
    return torch.cat([2 * re, -2 * im], dim=-1)


def _stack(parts: tuple[Tensor, ...]) -> Tensor:
    """Real and imaginary parts of two matrices (H, N, l) in one of 2N rows and 2l columns."""
    return torch.cat([torch.cat(parts[:2], dim=-1), torch.cat(parts[2:], dim=-1)], dim=1)


def _product(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    (J, H, N, _), L = w.shape, z.shape[1]
    out, weights, x = w.new_empty(J, H, L, 2), _weights(wide(w)), wide(x)
    for nodes in node_blocks(L, 4 * H * N, w.device):
        k = weights @ _stack(_halves(x, wide(z[:, nodes])))  # (H, J, 2l)
        out[:, :, nodes] = k.unflatten(-1, (2, -1)).permute(1, 0, 3, 2)
    return out


def _gradients(
    grad: Tensor, w: Tensor, x: Tensor, z: Tensor, needed: tuple[bool, ...] = (True,) * 3
) -> tuple[Tensor | None, ...]:
    """Of w, x and z. The quotients' derivatives are their squares, of half sum U = E^2 - F^2 and half difference 2i V, V = F E:
    dk/dp = 2 sum Re(w) U - 2 Im(w) V,  dk/dq = -2 sum Im(w) U + 2 Re(w) V,  dk/dz = -dk/dp."""
    H, N, L = *w.shape[1:3], z.shape[1]
    poles, weights = wide(x), _weights(wide(w))
    slopes = torch.cat([weights[..., :N], 2 * weights[..., N:]], dim=-1)
    of_w, moments = torch.zeros_like(weights), torch.zeros_like(weights)
    of_z = z.new_empty(z.shape) if needed[2] else None
    for nodes in node_blocks(L, 8 * H * N, w.device):
        g = wide(grad[:, :, nodes]).permute(1, 0, 3, 2).flatten(2)  # (H, J, 2l)
        e, e_im, f, f_im = parts = _halves(poles, wide(z[:, nodes]))
        of_w += g @ _stack(parts).mT
        half_sum = e * e - e_im * e_im - (f * f - f_im * f_im), 2 * (e * e_im - f * f_im)
        squares = _stack((*half_sum, e * f - e_im * f_im, e * f_im + e_im * f))
        moments += g @ squares.mT
        if of_z is not None:
            s_re, s_im = (slopes @ squares).chunk(2, dim=-1)
            g_re, g_im = g.chunk(2, dim=-1)
            of_z[:, nodes] = -torch.stack([g_re * s_re + g_im * s_im, g_im * s_re - g_re * s_im], -1).sum(1)
    of_w = torch.stack([2 * of_w[..., :N], -2 * of_w[..., N:]], dim=-1).transpose(0, 1)
    (re, im), (u, v) = wide(w).transpose(0, 1).unbind(-1), moments.chunk(2, dim=-1)
    of_x = torch.stack([(2 * re * u - 4 * im * v).sum(1), (-2 * im * u - 4 * re * v).sum(1)], dim=-1)
    return of_w.to(w.dtype), of_x.to(x.dtype), of_z


_operator = operators.operator(
    "cauchy(Tensor w, Tensor x, Tensor z) -> Tensor",
    _product,
    lambda w, x, z: w.new_empty(*w.shape[:2], z.shape[1], 2),
    heads=(1, 0, 0),
    out_heads=(1,),
)
_gradients_operator = operators.operator(
    "cauchy_gradients(Tensor grad, Tensor w, Tensor x, Tensor z) -> (Tensor, Tensor, Tensor)",
    _gradients,
    lambda grad, w, x, z: (w.new_empty(w.shape), x.new_empty(x.shape), z.new_empty(z.shape)),
    heads=(1, 1, 0, 0),
    out_heads=(1, 0, 0),
)
operators.differentiate(_operator, _gradients_operator)
