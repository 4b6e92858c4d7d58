"""Kernels of one configuration as one kernel of all their heads: the axes of a square grid at the price of one.

A kernel is many operations on small tensors, which cost about the same for twice the heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s4nd.nn.kernels.base import SSMKernel

# The axis of heads, or of their state-space models, of each parameter that does not begin with it.
HEADS_AXIS = {"C": 1, "P": 1}


def alike(a: SSMKernel, b: SSMKernel) -> bool:
    """Whether two kernels differ in nothing but the values of their parameters."""
    configuration = a.configuration()
    return configuration is not None and configuration == b.configuration()


def side_by_side(kernels: Sequence[SSMKernel], L: int, rate: float = 1.0, **settings: Any) -> tuple[Tensor, ...]:
    """`kernel(L, rate, **settings)` of each; all must be alike."""
    each = [kernel.values() for kernel in kernels]
    together = {name: torch.cat([p[name] for p in each], dim=HEADS_AXIS.get(name, 0)) for name in each[0]}
    return kernels[0].compute(together, L, rate, **settings).chunk(len(kernels), dim=1)
