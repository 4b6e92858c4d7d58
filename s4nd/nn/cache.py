"""What a layer computes from its parameters alone, kept in evaluation until they change."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

# Entries of a layer: two grids or so, each with its axes' kernels and its matrices, which on a large grid are as large as two
# of the layer's inputs.
ENTRIES = 8


class EvaluationCache(dict):
    """{key: (state, value)}, at most ENTRIES of them; it stays out of copies and pickles.

    A change of a parameter through `.data` leaves no trace in its state; the owner clears the cache in `train()`.
    """

    def get_or_compute(self, key: Hashable, state: tuple, compute: Callable[[], Any]) -> Any:
        """The value of `key` if it was computed in this state, else what `compute` returns now."""
        if key not in self or self[key][0] != state:
            # Tensors made in inference mode could not take part in a backward pass later, to the input of a frozen layer.
            with torch.inference_mode(False), torch.no_grad():
                value = compute()
            while len(self) >= ENTRIES:
                del self[next(iter(self))]
            self[key] = state, value
        return self[key][1]

    def __reduce__(self) -> tuple:
        return EvaluationCache, ()


def state_of(module: nn.Module) -> tuple:
    """What changes whenever a parameter of the module does."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters())


def is_changing(module: nn.Module) -> bool:
    """Whether what follows from the module's parameters must be computed anew: for their gradients, or for a compiler."""
    if module.training or torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
