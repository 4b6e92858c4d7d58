"""The layer in half precision against a plain depthwise convolution in that dtype, both against float64.

Rounding steps of relative size u, independent of each other: the plain convolution has two, of its dense kernel and of its
output. An axis-by-axis one has 2 D: D kernels, D - 1 results between the axes, and the output. The ratio of their RMS errors is
therefore about sqrt D: 1.4 for images, 1.7 for video. The bound is 2. (Three axes, rank 2, under autocast is left out: the
terms of the sum may cancel, and it is 1.5 to 2.03. In pure half precision the skip D u is rounded too, in both, and the ratio
is smaller.)
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd import S4ND
from s4nd.conv import EVERYWHERE
from s4nd.conv.dense import outer_product

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SEEDS = 12
H = 3


def plain(layer: S4ND, u: Tensor) -> Tensor:
    """The layer as one convolution of torch with the dense kernel, in the dtype of u or of autocast."""
    K = outer_product([layer.kernel_lags(axis, n).double() for axis, n in enumerate(u.shape[2:])])[0].to(u.dtype)
    K = K[:, None].flip(*range(2, 2 + layer.ndim))  # torch's convolutions are correlations
    y = CONV[layer.ndim](u, K, padding=[n - 1 for n in u.shape[2:]], groups=H)
    return (y + layer.D.reshape(H, *[1] * layer.ndim) * u).to(y.dtype)


@torch.no_grad()
def squared_errors(algorithm: str, sizes: tuple[int, ...], rank: int, dtype: torch.dtype, autocast: bool, seed: int):
    """Sums over the outputs of the layer and of the plain convolution; white noise, or all but constant, by turns."""
    torch.manual_seed(seed)
    layer = S4ND(H, len(sizes), d_state=8, kernel="s4d", rank=rank, algorithm=algorithm)
    u = torch.randn(2, H, *sizes) if seed % 2 else 1 + 0.1 * torch.randn(2, H, *sizes)
    u = u.to(dtype)
    if not autocast:
        layer.to(dtype)
    exact = copy.deepcopy(layer).double()(u.double())
    u = u.float() if autocast else u
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        return torch.stack([(y.double() - exact).square().sum() for y in (layer(u), plain(layer, u))])


CASES = [(sizes, autocast, rank) for sizes in ((5,), (1, 6), (9, 7)) for autocast in (False, True) for rank in (1, 2)]
CASES += [((3, 4, 5), False, 1), ((3, 4, 5), False, 2), ((3, 4, 5), True, 1), ((6, 5, 6), True, 1)]


@pytest.mark.parametrize(("sizes", "autocast", "rank"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", EVERYWHERE)
def test_half_precision_errs_at_most_twice_as_much_as_a_plain_convolution(algorithm, dtype, sizes, autocast, rank):
    """RMS over all outputs of 12 draws of parameters and signals."""
    ours, theirs = sum(squared_errors(algorithm, sizes, rank, dtype, autocast, seed) for seed in range(SEEDS)).sqrt()
    assert ours <= 2 * theirs
