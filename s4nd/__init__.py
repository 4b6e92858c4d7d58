"""S4ND: global convolutions over images and videos whose kernels are continuous, so that they follow the sampling."""

from pathlib import Path as _Path

from s4nd._checkout import check_links as _check_links
from s4nd.nn import S4ND, frozen, no_weight_decay, param_groups, set_bandlimit, set_base_size, set_resample

_check_links(_Path(__file__).parent)

__version__ = "0.1.0"
__all__ = ["S4ND", "frozen", "no_weight_decay", "param_groups", "set_bandlimit", "set_base_size", "set_resample"]
