"""The convolution as an operator of torch's library: what a compiler sees of it.

A compiled graph holds it as one node, with another for its backward pass. The choice of the algorithm, by size, is made inside
at every call, so that a size leaves no guard in the graph; and loops over blocks are not unrolled into it.
"""

import torch
from torch import Tensor

from s4nd.conv import own
from s4nd.conv.layout import like_output


@torch.library.custom_op("s4nd::conv", mutates_args=())
def conv(u: Tensor, skip: Tensor | None, kernels: list[Tensor], algorithm: str) -> Tensor:
    """(B, H, *axes) -> (B, C, H, *axes), see `separable_conv`."""
    return own.forward(u, skip, kernels, algorithm)


@torch.library.custom_op("s4nd::conv_backward", mutates_args=())
def conv_backward(
    grad: Tensor, u: Tensor, skip: Tensor | None, kernels: list[Tensor], algorithm: str, needed: list[bool]
) -> list[Tensor]:
    """The gradients that are `needed` of u, skip and the kernels."""
    return [g for g in own.backward(grad, u, skip, kernels, algorithm, needed) if g is not None]


@conv.register_fake
def _(u, skip, kernels, algorithm):
    return like_output(u, kernels[0].shape[1])


@conv_backward.register_fake
def _(grad, u, skip, kernels, algorithm, needed):
    return [torch.empty_like(x) for x, wanted in zip((u, skip, *kernels), needed, strict=True) if wanted]


def _setup_context(ctx, inputs, output) -> None:
    u, skip, kernels, ctx.algorithm = inputs
    ctx.save_for_backward(u, skip, *kernels)


def _backward(ctx, grad: Tensor):
    u, skip, *kernels = ctx.saved_tensors
    of_u, of_skip, of_kernels, _ = ctx.needs_input_grad
    needed = [of_u, of_skip, *of_kernels]
    grads = iter(conv_backward(grad, u, skip, kernels, ctx.algorithm, needed))
    of_u, of_skip, *of_kernels = (next(grads) if wanted else None for wanted in needed)
    return of_u, of_skip, of_kernels, None


conv.register_autograd(_backward, setup_context=_setup_context)
