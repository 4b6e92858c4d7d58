"""S4ND: global convolutions over images and videos whose kernels are continuous, so that they follow the sampling."""

from s4nd.nn import S4ND, frozen, no_weight_decay, param_groups, set_bandlimit, set_base_size, set_resample

__version__ = "0.1.0"
__all__ = ["S4ND", "frozen", "no_weight_decay", "param_groups", "set_bandlimit", "set_base_size", "set_resample"]
