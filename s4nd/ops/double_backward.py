"""Derivatives of second order of the operations that have a backward pass of their own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wanted() -> bool:
    """Whether the running backward pass is to be differentiated again (create_graph=True)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def by_definition(definition: Callable[..., Tensor], inputs: Sequence, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of definition(*inputs), which autograd can follow all the way; None for what needs none.

    An own backward pass saves tensors that autograd does not know as functions of the inputs: differentiated again it would
    be wrong. The definition is slower and right.
    """
    needed = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    grads = iter(torch.autograd.grad(definition(*inputs), needed, grad, create_graph=True, allow_unused=True))
    return tuple(next(grads) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs)
