"""The kernel of a trained grid on another grid, held or dilated.

Both are linear in the kernel. For short axes their matrix is kept, whose product costs next to nothing; long ones take the
form that is O(n).
"""

from functools import lru_cache

import torch
from torch import Tensor

from s4nd.conv.dilated import dilated
from s4nd.conv.held import held
from s4nd.ops.precision import widest

REGRID = {"hold": held, "dilate": dilated}

# Entries up to which a matrix is faster: on one thread 64 heads, held, took 0.014 ms against 0.26 from 8 to 32 samples (a
# matrix of 945), 0.19 against 0.43 from 56 to 224 (49,617), and 61 against 4.9 from 1,024 to 4,096.
MATRIX = 2**17


def regrid(k: Tensor, n: int, method: str, *, align: str, causal: bool) -> Tensor:
    """k (..., 2b - 1) by lag, of a grid of b samples, on one of n: (..., 2n - 1), in the dtype of k. `method` is of REGRID."""
    b = (k.shape[-1] + 1) // 2
    if torch.compiler.is_compiling():  # and exporting: a program for all sizes must not be bound by comparisons
        return REGRID[method](k, n, align=align, causal=causal)
    if n == b:
        return k
    if (2 * n - 1) * (2 * b - 1) <= MATRIX:
        return k @ _matrix(n, b, method, align, causal, k.device, k.dtype)
    return REGRID[method](k, n, align=align, causal=causal)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # it outlives it
def _matrix(n: int, b: int, method: str, align: str, causal: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2b - 1, 2n - 1): what each lag takes of every trained one. Made on the device: a copy to it would wait for it."""
    with torch.no_grad():
        every = torch.eye(2 * b - 1, dtype=widest(device), device=device)
        return REGRID[method](every, n, align=align, causal=causal).to(dtype)
