"""When an operation's own backward pass serves, and what to do where it does not.

Several operations have a backward pass of their own, which is faster than autograd's of their definition. It knows first
derivatives by reverse mode, of plain tensors. What else is asked of an operation goes through its definition: second
derivatives, forward mode, and the transforms of torch.func (vmap, jvp, jacfwd), whose tensors an own pass cannot write into.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is at work, so that an operation must be its definition."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wanted() -> bool:
    """Whether the running backward pass is to be differentiated again (create_graph=True)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def by_definition(definition: Callable, inputs: Sequence, grad: Tensor | Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of definition(*inputs), which autograd can follow all the way; None for what needs none.

    An own backward pass saves tensors that autograd does not know as functions of the inputs: differentiated again it would
    be wrong. The definition is slower and right.
    """
    needed = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    grads = iter(torch.autograd.grad(definition(*inputs), needed, grad, create_graph=True, allow_unused=True))
    return tuple(next(grads) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs)
