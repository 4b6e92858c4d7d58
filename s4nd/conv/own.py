"""The convolution on a CPU with a backward pass of its own: pure functions, and the autograd function of both."""

from collections.abc import Sequence

import torch
from torch import Tensor

from s4nd.conv import blocked, kronecker
from s4nd.conv.choice import choose
from s4nd.conv.definition import definition
from s4nd.conv.layout import like_output
from s4nd.ops import autodiff


def forward(u: Tensor, skip: Tensor | None, kernels: Sequence[Tensor], algorithm: str) -> Tensor:
    """y (B, C, H, *axes) as in `separable_conv`; nothing is recorded for gradients."""
    along = choose(len(u), u.shape[2:], algorithm)
    if len(u) == 0:
        return like_output(u, kernels[0].shape[1])
    if along[0] == "kronecker":
        return kronecker.forward(u, kernels, skip)
    return blocked.forward(u, kernels, skip, along)


def backward(
    grad: Tensor, u: Tensor, skip: Tensor | None, kernels: Sequence[Tensor], algorithm: str, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of u, skip and the kernels, given that of y; None where `needed` is false."""
    along = choose(len(u), u.shape[2:], algorithm)
    if len(u) == 0:
        return [torch.zeros_like(x) if wanted else None for x, wanted in zip((u, skip, *kernels), needed, strict=True)]
    if along[0] == "kronecker":
        return kronecker.backward(grad, u, kernels, skip, needed)
    return blocked.backward(grad, u, kernels, skip, along, needed)


class OwnConv(torch.autograd.Function):
    """`OwnConv.apply(u, skip, algorithm, *kernels)`."""

    @staticmethod
    def forward(ctx, u: Tensor, skip: Tensor | None, algorithm: str, *kernels: Tensor) -> Tensor:
        ctx.algorithm = algorithm
        ctx.save_for_backward(u, skip, *kernels)
        return forward(u, skip, kernels, algorithm)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *kernels = ctx.saved_tensors
        if autodiff.wanted():
            along = choose(len(u), u.shape[2:], ctx.algorithm)
            function = lambda u, skip, *kernels: definition(u, kernels, skip, along)  # noqa: E731
            of_u, of_skip, *of_k = autodiff.by_definition(function, (u, skip, *kernels), grad)
        else:
            of_u, of_skip, _, *of_k = ctx.needs_input_grad
            of_u, of_skip, *of_k = backward(grad, u, skip, kernels, ctx.algorithm, (of_u, of_skip, *of_k))
        return of_u, of_skip, None, *of_k
