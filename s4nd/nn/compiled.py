"""A layer's evaluation as an operator of torch's library: what a compiler sees of it.

Compiled code would compute the kernels anew in every call. Behind an operator they are kept as in eager mode, and compared with
the weights; and neither a size nor the choice of a form leaves a guard in the graph. The layer is named by a number in a
tensor: an int would be a guard too, and a block that is compiled once for all its copies would be compiled for each.
"""

import torch
from torch import Tensor
from torch.func import functional_call

from s4nd.nn.kept import layer_of_number


@torch.library.custom_op("s4nd::evaluate", mutates_args=())
def evaluate(u: Tensor, values: list[Tensor], number: Tensor, shape: list[int]) -> Tensor:
    """The layer's output, of a known shape, with its parameters as they are in `values`; no gradients."""
    layer = layer_of_number(int(number))
    own = dict(layer.named_parameters())
    if all(a.data_ptr() == b.data_ptr() for a, b in zip(own.values(), values, strict=True)):
        y = layer.evaluate(u)
    else:  # somebody runs it with other parameters than its own
        y = functional_call(layer, dict(zip(own, values, strict=True)), (u,))
    return y.contiguous() if u.is_contiguous() else y.movedim(1, -1).contiguous().movedim(-1, 1)


@evaluate.register_fake
def _(u: Tensor, values: list[Tensor], number: Tensor, shape: list[int]) -> Tensor:
    if u.is_contiguous():
        return u.new_empty(shape)
    return u.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
