"""The two structured contractions of state-space kernels, as functions on tensors, and the backends that compute them."""

from s4nd.ops.dispatch import BACKENDS, cauchy, vandermonde
from s4nd.ops.phi import phi1

__all__ = ["BACKENDS", "cauchy", "phi1", "vandermonde"]
