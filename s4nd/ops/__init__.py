"""The structured contraction of state-space kernels, as a function on tensors, and the backends that compute it."""

from s4nd.ops.dispatch import BACKENDS, vandermonde
from s4nd.ops.phi import phi1

__all__ = ["BACKENDS", "phi1", "vandermonde"]
