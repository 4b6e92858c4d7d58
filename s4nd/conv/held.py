"""A kernel of one grid on another: every lag held over its pixel.

Let k[i] be the kernel of the trained grid, whose samples are one apart, and let lag i stand for its cell of the line,

    c_i = [i - 1/2, i + 1/2]   (samples at the centres of pixels; of a causal axis c_0 = [0, 1/2], the rest of it lies ahead)
    c_i = [i, i + 1]           (samples at the edges)

so that the kernel is the density f(t) = k[i] / |c_i| for t in c_i. A grid with w samples to each trained one (any w > 0) gives
lag j the integral of f over its own cell c_j / w:

    k'[j] = int_{c_j / w} f(t) dt = sum_i k[i] |c_i n c_j / w| / |c_i|.

What follows from this, and is tested (tests/conv/test_held.py, tests/nn/test_resample.py):

1. On the trained grid w = 1, cells are cells and k' = k.
2. The cells c_j / w cover the line without overlap, so sum_j k'[j] = sum_i k[i]: constant signals are answered alike. From
   there to a third grid is not the same as at once, unless it is a multiple.
3. With samples at centres, two-sided: y'[x] = sum_j k'[j] u[x - j] = sum_i k[i] m(x / w - i), where m(s) is the mean of u, as a
   function that is constant over fine pixels, over the interval [s - 1/2, s + 1/2] of a trained pixel's length. Proof: insert
   k', and sum over j first; |c_i n c_j / w| over j is the overlap of the fine pixels with the interval, whose length is 1.
   So every fine position answers as the trained layer does to the signal averaged over the trained pixel around it, whatever
   the kernel is: of what is finer than a trained pixel only such means count.
4. If u is constant over trained pixels and w is odd, then at the centre of a trained pixel that mean is the pixel's value, and
   y' there is the trained y. Elsewhere it is their linear interpolation: the mean over an interval that lies across two pixels.
   (Pooled over a trained pixel it is therefore not y[p] but (y[p - 1] + 6 y[p] + y[p + 1]) / 8 in the limit of fine grids.)
5. On a coarser grid (w < 1) lags are summed.
6. A causal kernel stays causal: no mass lies at t < 0.

The integral is taken as a difference of F(t) = int_{-inf}^t f, which is linear between the ends of half cells: O(n), so that
long axes stay cheap.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.ops.precision import wide


def held(k: Tensor, n: int, *, align: str, causal: bool) -> Tensor:
    """The kernel of a trained grid on a grid of n samples of the same extent.

    Args:
        k: (..., 2b - 1) by lag, of a grid of b samples; of a causal axis zero for lags below 0.
        n: samples of the other grid.
        align: "centre" or "edge", see ssm/align.py.

    Returns:
        (..., 2n - 1), in the dtype of k.
    """
    b = (k.shape[-1] + 1) // 2
    k_by_lag = (
        wide(k).flatten(0, -2).mT.contiguous() if k.ndim > 1 else wide(k)[:, None]
    )  # (2b - 1, rows): rows are copied whole
    half = k_by_lag.repeat_interleave(2, 0) / 2  # (2 (2b - 1), rows): the mass of each half of a cell
    if causal and align == "centre":  # lag 0 has one half, the second
        half = torch.cat([half[: 2 * b - 2], torch.zeros_like(half[:1]), 2 * half[2 * b - 1 : 2 * b], half[2 * b :]])
    integral = F.pad(half.cumsum(0), (0, 0, 1, 0))  # F at the ends of half cells
    j = torch.arange(-(n - 1), n + 1, device=k.device)
    # Where cell j begins, in half cells from the first one, as a fraction of whole numbers over n: nothing is rounded.
    begin = (2 * j - 1) * b + (2 * b - 1) * n if align == "centre" else 2 * j * b + 2 * (b - 1) * n
    begin = begin.clamp(0, len(half) * n)
    whole = torch.div(begin, n, rounding_mode="floor").clamp(max=len(half) - 1)
    part = (begin - whole * n).to(half.dtype)[:, None] / n
    ends = integral.index_select(0, whole) + part * half.index_select(0, whole)
    return ends.diff(dim=0).mT.unflatten(0, k.shape[:-1] or (1,)).to(k.dtype).reshape(*k.shape[:-1], -1)
