"""KeOps forms of the Vandermonde and Cauchy products: no N x L matrix is ever held, memory is that of inputs and result.

KeOps compiles the formula at its first use, with the machine's C++ compiler. Asking for this backend where it cannot run
is an error with the reason; nothing falls back silently.
"""

from functools import cache

import torch
from torch import Tensor

from s4nd.ops.dispatch import BackendError


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
        raise BackendError(
            f"backend='keops' cannot run here: {error!r}; install it with pip install 's4nd[keops]' and a C++ compiler, "
            "clear its cache with pykeops.clean_pykeops(), or use backend='torch'"
        ) from error
    return LazyTensor


def vandermonde_keops(w: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` as a KeOps reduction over n; same arguments and result."""
    LazyTensor = _lazy_tensor()
    l = torch.arange(max(2, L), dtype=x.dtype, device=x.device)  # noqa: E741
    l = LazyTensor(l.expand(*w.shape[:2], -1)[..., None, None].contiguous())  # noqa: E741  (J, H, L, 1, 1)
    v, y = _reduced(LazyTensor, w.to(x.dtype), x)
    angle = l * y[1]
    terms = (l * y[0]).exp() * (v[0] * angle.cos() - v[1] * angle.sin())
    return 2 * terms.sum(dim=3)[:, :, :L, 0].to(w.dtype)


def cauchy_keops(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` as a KeOps reduction over n (see ops/cauchy.py); same arguments and result."""
    LazyTensor = _lazy_tensor()
    L = z.shape[-2]
    nodes = z.expand(*w.shape[:2], L, 2)
    if L == 1:
        nodes = torch.cat([nodes, nodes], 2)
    nodes = LazyTensor(nodes[..., None, :].contiguous())  # (J, H, L, 1, 2)
    v, pole = _reduced(LazyTensor, w, x)
    t, above, below = nodes[0] - pole[0], nodes[1] - pole[1], nodes[1] + pole[1]
    upper, lower = 1 / (t * t + above * above), 1 / (t * t + below * below)
    re = v[0] * t * (upper + lower) - v[1] * (below * lower - above * upper)
    im = v[1] * t * (upper - lower) - v[0] * (above * upper + below * lower)
    return LazyTensor.concat(re, im).sum(dim=3, sum_scheme="kahan_scheme")[:, :, :L]


def _reduced(LazyTensor: type, w: Tensor, x: Tensor) -> tuple:
    """Weights (J, H, N, 2) and poles (H, N, 2) along the axis that is summed over, which KeOps knows by its length: not one."""
    x = x.expand_as(w)
    if w.shape[2] == 1:
        w, x = torch.cat([w, torch.zeros_like(w)], 2), torch.cat([x, x], 2)
    return tuple(LazyTensor(t.contiguous()[:, :, None]) for t in (w, x))  # (J, H, 1, N, 2)
