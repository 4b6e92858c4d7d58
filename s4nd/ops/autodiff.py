"""When an operation's own backward pass serves, and what to do where it does not.

Several operations have a backward pass of their own, which is faster than autograd's of their definition. It knows first
derivatives by reverse mode, of plain tensors. What else is asked of an operation goes through its definition: second
derivatives, forward mode, and the transforms of torch.func (vmap, jvp, jacfwd), whose tensors an own pass cannot write into.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is at work, so that an operation must be its definition."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wanted() -> bool:
    """Whether the running backward pass is to be differentiated again (create_graph=True)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Own(torch.autograd.Function):
    """`Own.apply(definition, product, gradients, *args)`: product(*args), with a backward pass of its own, first order.

    gradients(grad, *args, needed=flags) gives those of the leading arguments, the tensors: of a single one as it is, of several
    as a tuple; None, or anything, where none is needed.
    """

    @staticmethod
    def forward(ctx: Any, definition: Callable, product: Callable, gradients: Callable, *args: Any) -> Tensor:
        ctx.tensors = sum(isinstance(x, Tensor) for x in args)
        ctx.definition, ctx.gradients, ctx.numbers = definition, gradients, args[ctx.tensors :]
        ctx.save_for_backward(*args[: ctx.tensors])
        return product(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        args = *ctx.saved_tensors, *ctx.numbers
        if wanted():
            return None, None, None, *by_definition(ctx.definition, args, grad)
        grads = ctx.gradients(grad, *args, needed=ctx.needs_input_grad[3 : 3 + ctx.tensors])
        grads = (grads,) if isinstance(grads, Tensor) else grads
        return None, None, None, *grads, *(None for _ in ctx.numbers)


def by_definition(definition: Callable, inputs: Sequence, grad: Tensor | Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of definition(*inputs), which autograd can follow all the way; None for what needs none.

    An own backward pass saves tensors that autograd does not know as functions of the inputs: differentiated again it would
    be wrong. The definition is slower and right.
    """
    needed = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    grads = iter(torch.autograd.grad(definition(*inputs), needed, grad, create_graph=True, allow_unused=True))
    return tuple(next(grads) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs)
