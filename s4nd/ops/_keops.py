"""KeOps forms of the Vandermonde and Cauchy products: no N x L matrix is ever held, memory is that of inputs and result.

KeOps compiles a formula at its first use, with the machine's C++ compiler; `_keops_guard` lets it, and says why where it
cannot. Nothing falls back silently.
"""

from typing import Any

import torch
from torch import Tensor

from s4nd.ops._keops_guard import lazy_tensor
from s4nd.ops.cauchy import cauchy_definition
from s4nd.ops.vandermonde import vandermonde_definition

# The small products that are tried: weights (1, 1, 2, 2), poles (1, 2, 2), and 2 samples or nodes.
SMALL_W, SMALL_X = (((((1.0, -0.5), (0.25, 2.0)),),), (((-0.5, 1.0), (-1.0, -2.0)),))
SMALL_Z = ((0.5, 0.25), (1.0, -1.0))


@torch.compiler.disable  # it breaks the graph: the tracer of torch.compile cannot follow KeOps
def vandermonde_keops(w: Tensor, x: Tensor, L: int) -> Tensor:
    """`vandermonde_definition` as a KeOps reduction over n; same arguments and result.

    Raises:
        BackendError: KeOps cannot compute it here; the message says why.
    """
    LazyTensor = lazy_tensor(_vandermonde, vandermonde_definition, (w, x, L), (SMALL_W, SMALL_X, 2))
    return _vandermonde(LazyTensor, w, x, L)


@torch.compiler.disable
def cauchy_keops(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """`cauchy_definition` as a KeOps reduction over n (see ops/cauchy.py); same arguments and result.

    Raises:
        BackendError: KeOps cannot compute it here; the message says why.
    """
    LazyTensor = lazy_tensor(_cauchy, cauchy_definition, (w, x, z), (SMALL_W, SMALL_X, SMALL_Z))
    return _cauchy(LazyTensor, w, x, z)


def _vandermonde(LazyTensor: Any, w: Tensor, x: Tensor, L: int) -> Tensor:
    l = torch.arange(max(2, L), dtype=x.dtype, device=x.device)  # noqa: E741
    l = LazyTensor(l.expand(*w.shape[:2], -1)[..., None, None].contiguous())  # noqa: E741  (J, H, L, 1, 1)
    v, y = _reduced(LazyTensor, w.to(x.dtype), x)
    angle = l * y[1]
    terms = (l * y[0]).exp() * (v[0] * angle.cos() - v[1] * angle.sin())
    return 2 * terms.sum(dim=3)[:, :, :L, 0].to(w.dtype)


def _cauchy(LazyTensor: Any, w: Tensor, x: Tensor, z: Tensor) -> Tensor:
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


def _reduced(LazyTensor: Any, w: Tensor, x: Tensor) -> tuple:
    """Weights (J, H, N, 2) and poles (H, N, 2) along the axis that is summed over, which KeOps knows by its length: not one."""
    x = x.expand_as(w)
    if w.shape[2] == 1:
        w, x = torch.cat([w, torch.zeros_like(w)], 2), torch.cat([x, x], 2)
    return tuple(LazyTensor(t.contiguous()[:, :, None]) for t in (w, x))  # (J, H, 1, N, 2)
