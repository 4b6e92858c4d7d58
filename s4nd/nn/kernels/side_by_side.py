"""Kernels of one configuration as one kernel of all their heads: the axes of a square grid at the price of one.

A kernel is many operations on small tensors, which cost about the same for twice the heads.
"""

from collections.abc import Sequence

import torch

from s4nd.nn.kernels.base import SSMKernel

# The axis of heads, or of their state-space models, of each parameter that does not begin with it.
HEADS_AXIS = {"C": 1, "P": 1}


def alike(a: SSMKernel, b: SSMKernel) -> bool:
    """Whether two kernels differ in nothing but the values of their parameters, and nobody has hooked or parametrised them."""
    return type(a) is type(b) and _configuration(a) == _configuration(b) and _is_plain(a) and _is_plain(b)


def side_by_side(kernels: Sequence[SSMKernel]) -> SSMKernel:
    """A kernel whose heads are those of the first, then those of the second, and so on; all must be alike."""
    first, wide = kernels[0], object.__new__(type(kernels[0]))
    wide.__dict__.update(first.__dict__)
    wide._parameters = {
        name: torch.cat([getattr(kernel, name) for kernel in kernels], dim=HEADS_AXIS.get(name, 0))
        for name in first._parameters
    }
    wide.axes = len(kernels)
    wide.d_model, wide.n_ssm = first.d_model * wide.axes, first.n_ssm * wide.axes
    return wide


def _configuration(kernel: SSMKernel) -> tuple[dict, dict]:
    settings = {k: v for k, v in vars(kernel).items() if not k.startswith("_") and k != "training"}
    return settings, {name: (p.shape, p.dtype, p.device) for name, p in kernel._parameters.items()}


def _is_plain(kernel: SSMKernel) -> bool:
    return not (kernel._modules or kernel._forward_hooks or kernel._forward_pre_hooks or kernel._backward_hooks)
