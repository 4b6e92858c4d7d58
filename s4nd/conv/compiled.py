"""The convolution as an operator of torch's library: what a compiler sees of it.

A compiled graph holds it as one node, with another for its backward pass. The choice of the algorithm, by size, is made inside
at every call, so that a size leaves no guard in the graph; and loops over blocks are not unrolled into it.
"""

from typing import Any

import torch
from torch import Tensor

from s4nd.conv import fused, own


@torch.library.custom_op("s4nd::conv", mutates_args=())
def conv(u: Tensor, skip: Tensor | None, kernels: list[Tensor], algorithm: str, pool: list[int]) -> Tensor:
    """(B, H, *axes) -> (B, C, H, *axes), see own.py."""
    return own.forward(u, skip, kernels, algorithm, pool)


@torch.library.custom_op("s4nd::conv_backward", mutates_args=())
def _conv_backward(
    grad: Tensor,
    u: Tensor,
    skip: Tensor | None,
    kernels: list[Tensor],
    algorithm: str,
    pool: list[int],
    needed: list[bool],
) -> list[Tensor]:
    """The gradients that are `needed` of u, skip and the kernels."""
    return [g for g in own.backward(grad, u, skip, kernels, algorithm, pool, needed) if g is not None]


@conv.register_fake
def _(u: Tensor, skip: Tensor | None, kernels: list[Tensor], algorithm: str, pool: list[int]) -> Tensor:
    return own.empty_output(u, kernels, algorithm, pool)


@_conv_backward.register_fake
def _(
    grad: Tensor,
    u: Tensor,
    skip: Tensor | None,
    kernels: list[Tensor],
    algorithm: str,
    pool: list[int],
    needed: list[bool],
) -> list[Tensor]:
    layout = torch.contiguous_format if algorithm in fused.FORMS else torch.preserve_format
    inputs = zip((u, skip, *kernels), needed, strict=True)
    return [torch.empty_like(x, memory_format=layout) for x, wanted in inputs if wanted and x is not None]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    u, skip, kernels, ctx.algorithm, ctx.pool = inputs
    ctx.save_for_backward(u, skip, *kernels)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    u, skip, *kernels = ctx.saved_tensors
    of_u, of_skip, of_kernels, *_ = ctx.needs_input_grad
    needed = [of_u, of_skip, *of_kernels]
    grads = iter(_conv_backward(grad, u, skip, kernels, ctx.algorithm, ctx.pool, needed))
    of_u, of_skip, *of_kernels = (next(grads) if wanted else None for wanted in needed)
    return of_u, of_skip, of_kernels, None, None


conv.register_autograd(_backward, setup_context=_setup_context)
