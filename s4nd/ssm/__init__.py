"""One 1-D state-space model x' = A x + B u, y = C x, as pure functions: initialisation, discretisation, kernels."""

from s4nd.ssm.diagonal import diagonal_kernel
from s4nd.ssm.discretize import DISCRETIZATIONS, asynchronous, bilinear, dirac, zoh
from s4nd.ssm.dplr import dplr_kernel
from s4nd.ssm.fold import folded_kernel
from s4nd.ssm.hippo import diagonal_init, dplr_init, fout, legs, legt
from s4nd.ssm.stepping import DiagonalStep, DPLRStep, Step, diagonal_step, dplr_step

__all__ = [
    "DISCRETIZATIONS",
    "DPLRStep",
    "DiagonalStep",
    "Step",
    "asynchronous",
    "bilinear",
    "diagonal_init",
    "diagonal_kernel",
    "diagonal_step",
    "dirac",
    "dplr_init",
    "dplr_kernel",
    "dplr_step",
    "folded_kernel",
    "fout",
    "legs",
    "legt",
    "zoh",
]
