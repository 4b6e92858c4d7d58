"""The structured contraction of state-space kernels, as a function on tensors, and the backends that compute it."""

from s4nd.ops.dispatch import BACKENDS, BackendError, cauchy, vandermonde
from s4nd.ops.phi import phi1
from s4nd.ops.vandermonde import centred

__all__ = ["BACKENDS", "BackendError", "cauchy", "centred", "phi1", "vandermonde"]
