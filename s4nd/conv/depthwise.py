"""One axis as a depthwise convolution of 2n - 1 taps, in channels-last: the form of evaluation on short axes.

It is the operator that every exporter, quantizer and compiler knows. Its backward pass is slow on CPUs, so training takes
products with matrices instead.
"""

import torch.nn.functional as F
from torch import Tensor


def window(k: Tensor, taps: int, pool: int = 1) -> Tensor:
    """A kernel by lag as torch's convolution takes it, a cross-correlation, with an average pooling after it folded in:

        y[m] = 1/p sum_(j<p) sum_s k[m p + j - s] u[s]   is a convolution of stride p, with `taps` - 1 zeros on either side

    Args:
        k: (..., 2n - 1), zero at lags of `taps` and more.
        taps: at most n.
        pool: p.

    Returns:
        (..., 2 taps + p - 2).
    """
    n = (k.shape[-1] + 1) // 2
    near = k[..., n - taps : n + taps - 1]
    if pool > 1:
        padded = F.pad(near, (pool - 1, pool - 1)).flatten(0, -2)
        near = F.avg_pool1d(padded, pool, stride=1).unflatten(0, near.shape[:-1])
    return near.flip(-1).contiguous()
