"""1-D kernels by name: each module is one parametrisation behind the interface of base.py."""

from s4nd.nn.kernels.base import SSMKernel
from s4nd.nn.kernels.s4 import S4Kernel
from s4nd.nn.kernels.s4d import S4DKernel

KERNELS: dict[str, type[SSMKernel]] = {"s4": S4Kernel, "s4d": S4DKernel}

__all__ = ["KERNELS", "S4DKernel", "S4Kernel", "SSMKernel"]
