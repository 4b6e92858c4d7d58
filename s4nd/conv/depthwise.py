"""The convolution as torch's own, one depthwise convolution of 2n - 1 taps per axis: the form for exported programs.

The sizes may stay symbols: torch's convolutions put no condition on them, where reshapes around matrix products do. All
exporters, quantizers and compilers know these operators.

Shapes: R rank, C kernels per head, B batch, H heads, n_i samples along axis i.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def depthwise_conv(u: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """u (B, H, n_1, ..., n_D), D at most 3, with D kernels by lag (R, C, H, 2n_i - 1) -> (B, C, H, n_1, ..., n_D)."""
    D, (R, C, H) = len(kernels), kernels[0].shape[:3]
    y, groups = u, H
    for i, k in enumerate(kernels):
        taps = k.flip(-1).permute(2, 0, 1, 3)  # (H, R, C, 2n - 1); torch's convolutions are correlations
        taps = taps[:, 0, 0] if R * C == 1 else taps.flatten(0, 2)  # to flatten axes of 1 is a condition on n
        weight = taps[(slice(None), None, *[None] * i, slice(None), *[None] * (D - 1 - i))]
        n = u.shape[i + 2]
        y = F.pad(y, [0, 0] * (D - 1 - i) + [n - 1, n - 1])  # as `padding` of the convolution it would bound n
        y, groups = CONVOLUTIONS[D](y, weight.to(u.dtype), groups=groups), H * R * C
    if R * C == 1:
        return y[:, None]
    return y.unflatten(1, (H, R, C)).sum(2).transpose(1, 2)
