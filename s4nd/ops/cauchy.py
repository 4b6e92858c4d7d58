"""Cauchy product: the generating function of a diagonal state-space model at the nodes z.

    f(z_j) = sum_n v_n / (z_j - w_n) + conj(v_n) / (z_j - conj(w_n))

Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", 2021, arXiv:2111.00396, section 3.2.

Shapes: C functions per head, H heads, N poles (one of each conjugate pair), M nodes. Complex tensors are real pairs (..., 2).
"""

import torch
from torch import Tensor

from s4nd.ops import pairs


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


def cauchy_torch(v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` as one real matrix product; same arguments and result.

    With w = a + ib, the pair's term is [Re v (z - a) - Im v b] * 2 / ((z - a)^2 + b^2): linear in (Re v, Im v), so
    a (2N, 2M) matrix per head serves all C functions.
    """
    H, N, _ = w.shape
    a, b = w[:, :, None].unbind(-1)  # (H, N, 1)
    s = pairs.pair(z[:, 0] - a, z[:, 1])  # (H, N, M, 2)
    q = pairs.mul(s, s) + pairs.pair(b.square(), torch.zeros_like(b))
    of_re, of_im = pairs.div(2 * s, q), pairs.div(pairs.pair(-2 * b, torch.zeros_like(b)), q)
    basis = torch.cat([of_re, of_im], dim=1).reshape(H, 2 * N, -1)  # (H, 2N, 2M)
    weights = torch.cat(v.transpose(0, 1).unbind(-1), dim=-1)  # (H, C, 2N)
    return torch.matmul(weights, basis).transpose(0, 1).unflatten(-1, (-1, 2))
