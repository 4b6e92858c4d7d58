"""Average pooling over any number of axes: the mean of each whole window; what is left of an axis is dropped."""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def average_pool(u: Tensor, pool: list[int]) -> Tensor:
    """Mean over windows of the last axes, without padding, as torch's AvgPool.

    Sums of strided slices, axis by axis: on a CPU several times faster than a reduction over so short windows.

    Args:
        u: (..., n_1, ..., n_D).
        pool: D window lengths p_i, which are the strides too.

    Returns:
        (..., n_1 // p_1, ..., n_D // p_D).
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out what it does not know in this form alone
        if torch.compiler.is_exporting() and u.ndim - 2 == len(pool) <= 3:  # slices would bind the size
            return u if max(pool) == 1 else POOLINGS[len(pool)](u, pool)
    for i, p in enumerate(pool):
        axis = i - len(pool)
        if p > 1:
            m = u.shape[axis] // p
            windows = u.narrow(axis, 0, m * p).unflatten(axis, [m, p])
            total = windows.select(axis, 0)
            for j in range(1, p):
                total = total + windows.select(axis, j)
            u = total / p
    return u
