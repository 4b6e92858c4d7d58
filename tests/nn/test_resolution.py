"""One signal at several samplings: the layer's answer against its own at the trained sampling."""

import pytest
import torch

from s4nd import S4ND, set_bandlimit, set_base_size

F64 = torch.float64


def picture(n: int, ndim: int, align: str) -> torch.Tensor:
    """Waves of at most 2 cycles along each axis of [0, 1]^ndim, nothing at the border: (1, 4, n, ..., n).

    Each sample is the value where `align` says that it sits: at its pixel's centre or at its first edge.
    """
    x = (torch.arange(n, dtype=F64) + (0.5 if align == "centre" else 0.0)) / n
    bump = torch.sin(torch.pi * x) ** 2  # one cycle; the other one is the wave's
    f, g = (bump * torch.exp(2j * torch.pi * k * x) for k in (0, 1))
    if ndim == 1:
        return torch.stack([f.real, f.imag, g.real, g.imag])[None]
    return torch.stack([(a[:, None] * b).real for a in (f, g) for b in (f, g)])[None]


def at_coarse_samples(y: torch.Tensor, times: int, align: str) -> torch.Tensor:
    """An answer on a grid `times` as fine, where the coarse samples sit; between two fine centres, their mean."""
    for axis in range(2, y.ndim):
        first = [0] if align == "edge" else [(times - 1) // 2, times // 2]
        y = sum(y.index_select(axis, torch.arange(k, y.shape[axis], times)) for k in first) / len(first)
    return y


def layer_at(size: int, ndim: int, align: str, kernel: str, seed: int = 0, **options) -> S4ND:
    torch.manual_seed(seed)
    layer = S4ND(4, ndim, kernel=kernel, base_size=size, align=align, dtype=F64, **options)
    torch.nn.init.zeros_(layer.D)
    return layer


@torch.no_grad()
def difference(layer: S4ND, coarse: int, times: int) -> float:
    """Relative difference between the answers on the coarse grid and on one `times` as fine, at the coarse samples."""
    y, fine = (layer(picture(n, layer.ndim, layer.align)) for n in (coarse, times * coarse))
    return ((at_coarse_samples(fine, times, layer.align) - y).norm() / y.norm()).item()


def bound(ndim: int, coarse: int, times: int, align: str) -> float:
    """For waves of w = 2 pi f h radians a coarse pixel of width h, f = 2, to leading order, the axes added.

    Edge: a tap stands for [m h, (m+1) h] and multiplies the sample at one end, half a pixel off: w / 2, at the fine grid
    w / (2 times). Centre: the midpoint rule's w^2 / 24, at the fine grid w^2 / (24 times^2); for even `times` the mean of two
    values h / (2 times) to either side adds w^2 / (8 times^2).
    """
    w = 2 * torch.pi * 2 / coarse
    if align == "edge":
        return ndim * w / 2 * (1 - 1 / times)
    return ndim * w**2 * ((1 - times**-2) / 24 + (times % 2 == 0) * times**-2 / 8)


# The trained grid, the coarse one of a pair, and how many times as fine the other is: 2x, 3x and 0.5x of the trained one.
PAIRS = {"2x": (32, 32, 2), "3x": (32, 32, 3), "0.5x": (32, 16, 2)}
# All modes lie below the Nyquist frequency of every grid here: 3 pi dt < pi / 2 at a step of 2.
SLOW = dict(d_state=8, dt_min=0.02, dt_max=0.08)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("align", "order"), [("centre", 2), ("edge", 1)])
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_answers_at_two_samplings_differ_by_the_rule_s_error_and_its_order(kernel, ndim, align, order, pair):
    base, coarse, times = PAIRS[pair]
    layer = layer_at(base, ndim, align, kernel, **SLOW)
    before = difference(layer, coarse, times)
    assert before < bound(ndim, coarse, times, align)
    set_base_size(layer, 2 * base, rescale=True)  # the same continuous kernel, all steps halved
    assert 0.75 * 2**order < before / difference(layer, 2 * coarse, times) < 1.25 * 2**order


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_centred_layer_keeps_its_answer_at_finer_grids_ten_times_better_than_edge(kernel, ndim, times):
    """As layers are trained: all modes there, cut at half the Nyquist frequency. RMS of four draws."""
    options = dict(bandlimit=0.5, dt_min=0.1, rank=4)
    squares = {
        align: sum(difference(layer_at(32, ndim, align, kernel, seed, **options), 32, times) ** 2 for seed in range(4))
        for align in ("centre", "edge")
    }
    assert squares["edge"] > 10**2 * squares["centre"]


def test_unseen_size_is_read_at_the_rate_of_each_axis():
    layer = S4ND(3, base_size=(8, None), d_state=8)
    assert (layer.rate(0, 16), layer.rate(1, 16)) == (0.5, 1.0)
    with torch.no_grad():
        reference = layer.kernels[0](16, 0.5, align="centre")
    assert torch.equal(layer.kernel_lags(0, 16)[0, 0, :, 16:], reference[0, :, 1:])


def test_window_keeps_its_extent_in_the_trained_grid():
    layer = S4ND(3, 1, base_size=16, l_max=5, d_state=8)
    for n, taps in ((16, 5), (32, 10), (8, 2)):
        support = layer.kernel_lags(0, n)[0, 0, 0].nonzero().flatten() - (n - 1)
        assert support.abs().max() == taps - 1


def test_bandlimit_counts_on_the_coarser_grid():
    """Modes of frequency dt Im A / (2 pi) = 0.05 n, cut at 0.225 cycles a sample of the coarser grid."""
    layer = S4ND(1, 1, d_state=16, kernel="s4d", base_size=8, dt_min=0.1, dt_max=0.1, bandlimit=0.45)
    kernel = layer.kernels[0]
    assert kernel.bandlimit_mask(0.45, rate=1.0).sum() == kernel.bandlimit_mask(0.45, rate=0.5).sum() == 5
    assert kernel.bandlimit_mask(0.45, rate=2.0).sum() == 3
    assert kernel.bandlimit_mask(1.0, rate=1.0).sum() == 8


def test_masked_modes_leave_the_kernel():
    torch.manual_seed(0)
    layer = S4ND(1, 1, d_state=16, kernel="s4d", dt_min=0.1, dt_max=0.1, bandlimit=0.45, n_ssm=1, dtype=F64)
    with torch.no_grad():
        limited = layer.kernel_lags(0, 20)
        layer.kernels[0].C[:, :, 5:] = 0
        set_bandlimit(layer, None)
        torch.testing.assert_close(layer.kernel_lags(0, 20), limited)


def test_rescaled_base_size_keeps_the_answer_at_the_new_size_and_declared_one_does_not():
    torch.manual_seed(0)
    model = torch.nn.Sequential(S4ND(3, base_size=8, d_state=8, dtype=F64), S4ND(3, base_size=8, d_state=8, dtype=F64))
    u = torch.randn(1, 3, 12, 16, dtype=F64)
    expected = model(u).detach()
    set_base_size(model, (12, 16), rescale=True)
    assert [layer.rate(1, 16) for layer in model] == [1.0, 1.0]
    torch.testing.assert_close(model(u), expected, rtol=0, atol=1e-11 * expected.abs().max())
    set_base_size(model, 8)
    assert not torch.allclose(model(u), expected)


def test_bandlimit_must_be_positive():
    with pytest.raises(ValueError, match="bandlimit must be positive or None, got 0"):
        set_bandlimit(S4ND(3), 0)


@pytest.mark.parametrize("size", [24, 10, 9])
def test_rescaled_window_keeps_its_share_of_the_axis(size):
    """A kernel that ends after 5 of 12 samples ends after 5/12 of any other grid that it is re-sampled to for good."""
    layer = S4ND(3, ndim=1, d_state=4, base_size=12, l_max=5, dtype=torch.float64).eval()
    u = torch.randn(1, 3, size, dtype=torch.float64)
    expected = layer(u).detach()
    set_base_size(layer, size, rescale=True)
    assert layer.l_max == (round(5 * size / 12),)
    torch.testing.assert_close(layer(u).detach(), expected, rtol=0, atol=1e-12 * expected.abs().max())
