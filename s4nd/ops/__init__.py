"""The structured contractions of state-space kernels, as functions on tensors, and the backends that compute them."""

from s4nd.ops.dispatch import BACKENDS, BackendError, cauchy, vandermonde
from s4nd.ops.phi import phi1
from s4nd.ops.vandermonde import centred

__all__ = ["BACKENDS", "BackendError", "cauchy", "centred", "phi1", "vandermonde"]
