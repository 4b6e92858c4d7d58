"""Modules: the S4ND layer, the kernels it is made of, and functions on any model that holds layers."""

from s4nd.nn.kept import frozen
from s4nd.nn.kernels import KERNELS
from s4nd.nn.optim_settings import no_weight_decay, param_groups
from s4nd.nn.plan import Plan
from s4nd.nn.resolution import set_bandlimit, set_base_size, set_resample
from s4nd.nn.s4nd import S4ND
from s4nd.nn.sampling import Sampling

__all__ = [
    "KERNELS",
    "S4ND",
    "Plan",
    "Sampling",
    "frozen",
    "no_weight_decay",
    "param_groups",
    "set_bandlimit",
    "set_base_size",
    "set_resample",
]
