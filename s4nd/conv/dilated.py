"""A kernel of one grid on another: every lag where it was, in trained pixels, with nothing between them.

On a grid with w = n / b samples to each trained one, lag i of the trained kernel k lies at x_i = w i samples (of edges, whose
lag i stands for [i, i + 1], at x_i = w (i + 1/2) - 1/2), between two lags of this grid. Each takes its share, as if the signal
were interpolated linearly between samples:

    k'[j] = sum_i k[i] max(0, 1 - |j - x_i|).

It is the dilated ("a trous") convolution of integer dilations, for any real ratio. What follows, and is tested
(tests/conv/test_dilated.py, tests/nn/test_resample.py):

1. On the trained grid w = 1, x_i = i and k' = k.
2. The triangles at whole distances sum to 1, so sum_j k'[j] = sum_i k[i]: constant signals are answered alike.
3. y'[x] = sum_j k'[j] u[x - j] = sum_i k[i] u(x - x_i), where u between samples is their linear interpolation. Insert k'.
4. Of centres with a whole w, y'[x] sees only samples a whole number of trained pixels from x: the w samples within a trained
   pixel, counted per axis, are as many signals of b samples, and each is answered as the trained layer does, its ends
   included. Whatever acts on every sample alone leaves them apart, so the same holds of a whole network of dilated layers
   and pointwise maps (no pooling in between): at w b samples it runs the trained network on each of these w^D images, and
   an average over the grid is the average of their features.
5. On a coarser grid (w < 1) lags share samples: nothing is left out.
6. A causal kernel stays causal: x_i >= 0 for i >= 0. Of edges on a coarser grid x_0 < 0, and lag 0 takes what is ahead.

By 4 nothing is averaged: an image with details finer than a trained pixel is seen as if it had been sampled without any
antialiasing. So the layer that sees the image is better held (held.py), which averages over trained pixels; with every layer
after it dilated, each of the w^D signals is the trained network's view of the image so averaged, at its own shift.
"""

import torch
from torch import Tensor

from s4nd.ops.precision import wide


def dilated(k: Tensor, n: int, *, align: str, causal: bool) -> Tensor:
    """The kernel of a trained grid on a grid of n samples of the same extent.

    Args:
        k: (..., 2b - 1) by lag, of a grid of b samples; of a causal axis zero for lags below 0.
        n: samples of the other grid.
        align: "centre" or "edge", see ssm/align.py.

    Returns:
        (..., 2n - 1), in the dtype of k.
    """
    b = (k.shape[-1] + 1) // 2
    i = torch.arange(-(b - 1), b, device=k.device)
    # x_i as a fraction of whole numbers: nothing is rounded.
    above, below = (i * n, b) if align == "centre" else ((2 * i + 1) * n - b, 2 * b)
    if causal:
        above = torch.where(i == 0, above.clamp(min=0), above)
    left = torch.div(above, below, rounding_mode="floor")
    values = wide(k)
    part = (above - left * below).to(values.dtype) / below
    # One lag more at both ends takes what lies beyond the grid.
    out = values.new_zeros((*k.shape[:-1], 2 * n + 1))
    for place, share in ((left, 1 - part), (left + 1, part)):
        out = out.index_add(-1, (place + n).clamp(0, 2 * n), values * share)
    return out[..., 1:-1].to(k.dtype)
