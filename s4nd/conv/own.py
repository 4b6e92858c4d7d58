"""The convolution with a backward pass of its own, on a CPU or fused on a GPU: pure functions, and their autograd function."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s4nd.conv import blocked, fused, kronecker
from s4nd.conv.choice import choose
from s4nd.conv.definition import definition
from s4nd.conv.layout import like_output
from s4nd.conv.pooling import average_pool
from s4nd.ops import autodiff


def forward(u: Tensor, skip: Tensor | None, kernels: Sequence[Tensor], algorithm: str, pool: Sequence[int]) -> Tensor:
    """y (B, C, H, *axes) as in `separable_conv`; nothing is recorded for gradients.

    Args:
        algorithm: one for CPUs, or one of fused.FORMS.
        pool: per axis, all 1 but for "plane".
    """
    if len(u) == 0:
        return empty_output(u, kernels, algorithm, pool)
    if algorithm in fused.FORMS:
        return fused.forward(algorithm, u, kernels, skip, pool)
    along = choose(len(u), u.shape[2:], algorithm)
    if along[0] == "kronecker":
        return kronecker.forward(u, kernels, skip)
    return blocked.forward(u, kernels, skip, along)


def backward(
    grad: Tensor,
    u: Tensor,
    skip: Tensor | None,
    kernels: Sequence[Tensor],
    algorithm: str,
    pool: Sequence[int],
    needed: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Gradients of u, skip and the kernels, given that of y; None where `needed` is false."""
    if len(u) == 0:
        inputs = zip((u, skip, *kernels), needed, strict=True)
        return [torch.zeros_like(x) if wanted and x is not None else None for x, wanted in inputs]
    if algorithm in fused.FORMS:
        return fused.backward(algorithm, grad, u, kernels, skip, pool, needed)
    along = choose(len(u), u.shape[2:], algorithm)
    if along[0] == "kronecker":
        return kronecker.backward(grad, u, kernels, skip, needed)
    return blocked.backward(grad, u, kernels, skip, along, needed)


def empty_output(u: Tensor, kernels: Sequence[Tensor], algorithm: str, pool: Sequence[int]) -> Tensor:
    """Uninitialised, where and as large as `forward` returns it."""
    C = kernels[0].shape[1]
    if algorithm not in fused.FORMS:
        return like_output(u, C)
    return u.new_empty(u.shape[0], C, u.shape[1], *(n // p for n, p in zip(u.shape[2:], pool, strict=True)))


class OwnConv(torch.autograd.Function):
    """`OwnConv.apply(u, skip, algorithm, pool, *kernels)`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, skip: Tensor | None, algorithm: str, pool: list[int], *kernels: Tensor) -> Tensor:
        ctx.algorithm, ctx.pool = algorithm, pool
        ctx.save_for_backward(u, skip, *kernels)
        return forward(u, skip, kernels, algorithm, pool)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *kernels = ctx.saved_tensors
        if autodiff.wanted():
            along = choose(len(u), u.shape[2:], ctx.algorithm)
            function = lambda u, skip, *kernels: average_pool(definition(u, kernels, skip, along), ctx.pool)  # noqa: E731
            of_u, of_skip, *of_k = autodiff.by_definition(function, (u, skip, *kernels), grad)
        else:
            of_u, of_skip, _, _, *of_k = ctx.needs_input_grad
            needed = of_u, of_skip, *of_k
            of_u, of_skip, *of_k = backward(grad, u, skip, kernels, ctx.algorithm, ctx.pool, needed)
        return of_u, of_skip, None, None, *of_k
