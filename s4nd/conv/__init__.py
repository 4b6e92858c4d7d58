"""N-D convolution with a sum over ranks of tensor products of 1-D kernels, as pure functions."""

from s4nd.conv.choice import ALGORITHMS, EVERYWHERE
from s4nd.conv.lags import lags
from s4nd.conv.regrid import REGRID, regrid
from s4nd.conv.separable import separable_conv

__all__ = ["ALGORITHMS", "EVERYWHERE", "REGRID", "lags", "regrid", "separable_conv"]
