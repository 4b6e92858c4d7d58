"""KeOps forms of the two products: the N x L matrix is never held, memory is that of the inputs and the result.

KeOps compiles each formula at its first use, with the machine's C++ compiler. Asking for this backend where it cannot run
is an error with the reason; nothing falls back silently.
"""

from functools import cache

import torch
from torch import Tensor

from s4nd.ops import pairs


@cache
def _lazy_tensor() -> type:
    """pykeops.torch.LazyTensor, once a small product has really been computed with it."""
    try:
        from pykeops.torch import LazyTensor

        x = torch.arange(3.0)[:, None]
        total = (LazyTensor(x[:, None]) * LazyTensor(x[None])).sum(1)  # (3, 1): x_i * sum x
        if not torch.equal(total, 3 * x):
            raise RuntimeError(f"a test product gave {total.flatten().tolist()}, not [0.0, 3.0, 6.0]")
    except Exception as error:
        # KeOps fails in many ways (no package, no compiler, a broken cache): all mean that it cannot be used here.
        raise RuntimeError(
            f"backend='keops' cannot run here: {error!r}; install it with pip install 's4nd[keops]' and a C++ compiler, "
            "clear its cache with pykeops.clean_pykeops(), or use backend='torch'"
        ) from error
    return LazyTensor


def vandermonde_keops(v: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` as a KeOps reduction over n; same arguments and result."""
    LazyTensor = _lazy_tensor()
    C = v.shape[0]
    x = x.expand(C, *x.shape)
    l = torch.arange(L, dtype=x.dtype, device=x.device).expand(*v.shape[:2], L)  # noqa: E741  (C, H, L)
    l_i = LazyTensor(l.contiguous()[:, :, :, None, None])  # (C, H, L, 1, 1)
    x_re, x_im, v_re, v_im = (
        LazyTensor(t.contiguous()[:, :, None, :, None]) for t in (*x.unbind(-1), *v.unbind(-1))
    )  # (C, H, 1, N, 1)
    angle = l_i * x_im
    terms = (l_i * x_re).exp() * (v_re * angle.cos() - v_im * angle.sin())
    return 2 * terms.sum(dim=3)[..., 0]


def cauchy_keops(v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` as two KeOps reductions over n, real and imaginary; same arguments and result."""
    LazyTensor = _lazy_tensor()
    C, H = v.shape[:2]
    w = w.expand(C, *w.shape)
    z = z.expand(C, H, *z.shape)
    z_re, z_im = (LazyTensor(t.contiguous()[:, :, :, None, None]) for t in z.unbind(-1))  # (C, H, M, 1, 1)
    w_re, w_im, v_re, v_im = (LazyTensor(t.contiguous()[:, :, None, :, None]) for t in (*w.unbind(-1), *v.unbind(-1)))
    a = z_re - w_re
    q_re, q_im = a * a - z_im * z_im + w_im * w_im, 2 * a * z_im  # (z - a)^2 + b^2
    n_re, n_im = 2 * (v_re * a - v_im * w_im), 2 * v_re * z_im
    q2 = q_re * q_re + q_im * q_im
    re = ((n_re * q_re + n_im * q_im) / q2).sum(dim=3)[..., 0]
    im = ((n_im * q_re - n_re * q_im) / q2).sum(dim=3)[..., 0]
    return pairs.pair(re, im)
