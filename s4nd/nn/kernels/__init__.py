"""1-D kernels by name: each module is one parametrisation behind the interface of base.py."""

from s4nd.nn.kernels.base import SSMKernel
from s4nd.nn.kernels.dss import DSSKernel
from s4nd.nn.kernels.ema import EMAKernel
from s4nd.nn.kernels.lru import LRUKernel
from s4nd.nn.kernels.s4 import S4Kernel
from s4nd.nn.kernels.s4d import S4DKernel

KERNELS: dict[str, type[SSMKernel]] = {k.name: k for k in (S4Kernel, S4DKernel, DSSKernel, LRUKernel, EMAKernel)}

__all__ = ["KERNELS", "DSSKernel", "EMAKernel", "LRUKernel", "S4DKernel", "S4Kernel", "SSMKernel"]
