"""One axis of a convolution kernel, from one or two one-sided kernels.

A kernel along an axis of n samples is stored by lag, index n - 1 + lag for lag = -(n-1) .. n-1, so that
y[t] = sum_s k[t - s] u[s] over all samples of the axis, zero outside it.
"""

import torch.nn.functional as F
from torch import Tensor


def lags(forward: Tensor, reverse: Tensor | None, n: int, align: str) -> Tensor:
    """Place one-sided kernels on the lags of an axis of n samples.

    Args:
        forward: (..., L) taps of lag 0, 1, ..., L <= n.
        reverse: the same for the other direction, or None on a causal axis. With align="edge" tap j has lag -(1 + j): the two
            kernels share no tap. With "centre" tap j has lag -j: tap 0 is half a pixel of either kernel, and they add.
        n: length of the axis.
        align: "edge" or "centre".

    Returns:
        (..., 2n - 1).
    """
    L = forward.shape[-1]
    if L > n:
        raise ValueError(f"a kernel on an axis of {n} samples has at most {n} taps, got {L}")
    k = F.pad(forward, (n - 1, n - L))
    if reverse is None:
        return k
    if align == "centre":
        return k + F.pad(reverse.flip(-1), (n - L, n - 1))
    # lag -n reaches no sample
    return k + F.pad(reverse[..., : n - 1].flip(-1), (n - 1 - min(L, n - 1), n))
