"""KeOps form of the Vandermonde product: the N x L matrix is never held, memory is that of the inputs and the result.

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
    l = torch.arange(L, dtype=x.dtype, device=x.device).expand(*w.shape[:2], L)  # noqa: E741  (J, H, L)
    l = LazyTensor(l[..., None, None].contiguous())  # noqa: E741  (J, H, L, 1, 1)
    v, y = (LazyTensor(t.contiguous()[:, :, None]) for t in (w.to(x.dtype), x.expand_as(w)))  # (J, H, 1, N, 2)
    angle = l * y[1]
    terms = (l * y[0]).exp() * (v[0] * angle.cos() - v[1] * angle.sin())
    return 2 * terms.sum(dim=3)[..., 0].to(w.dtype)
