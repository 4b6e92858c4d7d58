"""A state-space model run sample by sample, with a state of constant size.

    y[l] = C x[l] + D u[l],   x[l+1] = x[l] + G x[l] + B u[l]

x[l] is the state before sample l, so that reading after the input, or half-way through the sample, is folded into C and D.
With a, b of a step (align="edge") or of half a step (align="centre": half a step, read, half a step) and the read-out c:

    edge     G = a - 1       B = b            C = c a    D = c b
    centre   G = a^2 - 1     B = (1 + a) b    C = c a    D = c b

Two choices keep the digits of slow modes. G is stored, not 1 + G, whose rounding alone is a drift of 3e-8 per step: with a
damping of 1e-4 per step the output would be off by 7e-5 after 1,000. And everything is float64 whatever the layer's dtype:
the rounding of a float32 state adds up to 1e-5 at N = 64, that of a float64 one to nothing beside the full pass's own 1e-6.

Shapes: C kernels per head, H heads, N states (both of each conjugate pair, as [Re x; Im x] of the one that is kept), R low
rank, S sites: every position of the other axes has its own state. Complex tensors are real pairs (..., 2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from s4nd.ops import pairs
from s4nd.ops.precision import wide
from s4nd.ssm.align import check_align


@dataclass(frozen=True)
class Step:
    """One step of H models with C read-outs each. A state serves all the read-outs of its head.

    Attributes:
        B: (H, N).
        C: (C, H, N).
        D: (C, H).
    """

    B: Tensor
    C: Tensor
    D: Tensor

    @property
    def N(self) -> int:
        return self.B.shape[-1]

    def zero_state(self, u: Tensor) -> Tensor:
        """The state before the first sample of u (B, H, *axes): (B, H, *axes, N)."""
        return self.B.new_zeros(*u.shape, self.N)

    def __call__(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One sample u (B, H, *axes) and the state before it (B, H, *axes, N): y (B, C, H, *axes), and the state after."""
        v = u.to(self.B.dtype).reshape(*u.shape[:2], -1)  # (B, H, S)
        s = x.to(self.B.dtype).reshape(*v.shape, self.N)
        y = torch.einsum("chn,bhsn->bchs", self.C, s) + self.D[..., None] * v[:, None]
        s = s + (self.drift(s) + self.B[:, None] * v[..., None])
        return y.reshape(*y.shape[:3], *u.shape[2:]), s.reshape(x.shape)

    def drift(self, x: Tensor) -> Tensor:
        """G x for x (B, H, S, N)."""
        raise NotImplementedError


@dataclass(frozen=True)
class DiagonalStep(Step):
    """G = diag(g), g (H, N/2, 2)."""

    g: Tensor

    def drift(self, x: Tensor) -> Tensor:
        return _mul(self.g, x)


@dataclass(frozen=True)
class DPLRStep(Step):
    """G = diag(g) - Q K, g (H, N/2, 2), Q and K (R, H, N) with K real-linear: 2 R N products where a dense G takes N^2."""

    g: Tensor
    Q: Tensor
    K: Tensor

    def drift(self, x: Tensor) -> Tensor:
        return _mul(self.g, x) - torch.einsum("rhn,bhsr->bhsn", self.Q, torch.einsum("rhn,bhsn->bhsr", self.K, x))


def diagonal_step(log_a: Tensor, b: Tensor, C: Tensor, *, align: str = "edge") -> DiagonalStep:
    """The recurrence of `diagonal_kernel`: x = exp(log_a) x + b u, y = 2 Re sum_n C_n x_n.

    Args:
        log_a, b: (H, N/2, 2), of a step; of half a step for align="centre".
        C: (C, H, N/2, 2).
    """
    check_align(align)
    log_a, b, C = (wide(t) for t in (log_a, b, C))
    D = 2 * pairs.mul(C, b)[..., 0].sum(-1)
    C = _readout(pairs.mul(C, pairs.exp(log_a)))
    if align == "centre":
        b = 2 * b + pairs.mul(pairs.expm1(log_a), b)
        log_a = 2 * log_a
    return DiagonalStep(_real(b), C, D, pairs.expm1(log_a))


def dplr_step(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, *, align: str = "edge") -> DPLRStep:
    """The recurrence of `dplr_kernel`: A = diag(Lambda) - P P^*, bilinear.

    With h = dt / 2, S = (1 - h Lambda)^-1 and P P^* x = P 2 Re(P^* x), because x comes with its conjugate (P then counts
    one of each pair), the Woodbury identity has a real R x R core:

        (1 - h A)^-1 v = S v - S P (1/h + 2 Re P^* S P)^-1 2 Re(P^* S v)
        a - 1 = 2 ((1 - h A)^-1 - 1),   b = 2 h (1 - h A)^-1 B

    Args:
        dt: (H,) positive.
        Lambda, B: (H, N/2, 2), Re Lambda <= 0.
        P: (R, H, N/2, 2).
        C: (C, H, N/2, 2).
    """
    check_align(align)
    dt, Lambda, P, B, C = (wide(t) for t in (dt, Lambda, P, B, C))
    h = (dt / 4 if align == "centre" else dt / 2)[:, None, None]
    one = torch.eye(2, dtype=h.dtype, device=h.device)[0]
    S = pairs.div(one, one - h * Lambda)
    g, k = 2 * h * pairs.mul(Lambda, S), pairs.mul(S, pairs.conj(P))
    core = torch.eye(len(P), dtype=h.dtype, device=h.device) / h + _products(k, P)  # (H, R, R)
    # Its symmetric part is positive: it is regular, and a check of that would wait for the device.
    inverse, _ = torch.linalg.inv_ex(core)
    q = 2 * _combine(pairs.mul(S, P), inverse)
    b = 2 * h * (pairs.mul(S, B) - 0.5 * _combine(q, _products(k, B[None]))[0])
    D = 2 * pairs.mul(C, b)[..., 0].sum(-1)
    c = _readout(C + pairs.mul(C, g)) - torch.einsum("hcr,rhn->chn", _products(C, q), _readout(k))
    if align == "centre":  # b + (1 + G) b, and (1 + G)^2 - 1 = 2 G + G^2, of twice the rank
        b = 2 * b + pairs.mul(g, b) - _combine(q, _products(k, b[None]))[0]
        q, k = torch.cat([2 * q + pairs.mul(g, q) - _combine(q, _products(k, q)), q]), torch.cat([k, pairs.mul(k, g)])
        g = 2 * g + pairs.mul(g, g)
    return DPLRStep(_real(b), c, D, g, _real(q), _readout(k))


def _products(k: Tensor, q: Tensor) -> Tensor:
    """2 Re sum_n k_n q_n of each of k (K, H, N/2, 2) with each of q (Q, H, N/2, 2): (H, K, Q)."""
    return torch.einsum("khn,qhn->hkq", _readout(k), _real(q))


def _combine(q: Tensor, weights: Tensor) -> Tensor:
    """sum_r q_r weights[r, p]: q (R, H, N/2, 2), weights (H, R, P) real -> (P, H, N/2, 2)."""
    # Not by einsum: of one term, its gradient has strides that torch 2.7 cannot view as complex numbers.
    combined = weights.mT @ q.flatten(-2).transpose(0, 1)  # (H, P, N)
    return combined.transpose(0, 1).unflatten(-1, (-1, 2))


def _mul(g: Tensor, x: Tensor) -> Tensor:
    """g x for g (H, N/2, 2) and x (B, H, S, N) = [Re x; Im x]."""
    g_re, g_im = g[:, None].unbind(-1)
    re, im = x.chunk(2, dim=-1)
    return torch.cat([g_re * re - g_im * im, g_re * im + g_im * re], dim=-1)


def _real(x: Tensor) -> Tensor:
    """(..., N/2, 2) -> (..., N) = [Re x; Im x]."""
    return torch.cat(x.unbind(-1), dim=-1)


def _readout(C: Tensor) -> Tensor:
    """(..., N/2, 2) -> (..., N) whose product with [Re x; Im x] is 2 Re sum_n C_n x_n."""
    return 2 * _real(pairs.conj(C))
