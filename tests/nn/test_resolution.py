"""One signal at several samplings: the layer's answer against its own at the trained sampling."""

import pytest
import torch

from s4nd import S4ND, set_bandlimit, set_base_size

F64 = torch.float64


def picture(n: int) -> torch.Tensor:
    """Waves of at most 2 cycles along each axis of [0, 1]^2, nothing at the border, at n x n pixel centres: (1, 4, n, n)."""
    x = (torch.arange(n, dtype=F64) + 0.5) / n
    bump = torch.sin(torch.pi * x) ** 2  # one cycle; the other one is the wave's
    waves = [torch.cos(2 * torch.pi * (f * x[:, None] + g * x)) for f, g in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return torch.stack([bump[:, None] * bump * w for w in waves])[None]


def layer_at(size: int, align: str, **options) -> S4ND:
    torch.manual_seed(0)
    layer = S4ND(4, kernel="s4d", base_size=size, align=align, dtype=F64, **options)
    torch.nn.init.zeros_(layer.D)
    return layer


def difference(layer: S4ND, size: int) -> float:
    """Relative difference between the answers at size and at 3 size, where a fine pixel lies at each coarse centre."""
    with torch.no_grad():
        coarse, fine = layer(picture(size)), layer(picture(3 * size))[..., 1::3, 1::3]
    return ((fine - coarse).norm() / coarse.norm()).item()


def test_centred_layer_keeps_its_answer_at_three_times_the_resolution_ten_times_better_than_edge():
    """The midpoint rule of step h errs on a wave of f cycles by (2 pi f h)^2 / 24 along each of the two axes."""
    options = dict(bandlimit=0.5, dt_min=0.1)
    centre, edge = (difference(layer_at(32, align, **options), 32) for align in ("centre", "edge"))
    assert centre < 2 * (2 * torch.pi * 2 / 32) ** 2 / 24
    assert edge > 10 * centre


def test_difference_between_resolutions_falls_with_the_square_of_the_step():
    """All modes lie below the Nyquist frequency of every grid used: 3 pi dt < pi / 3."""
    coarse = layer_at(16, "centre", d_state=8, dt_min=0.02, dt_max=0.1)
    fine = layer_at(16, "centre", d_state=8, dt_min=0.02, dt_max=0.1)
    set_base_size(fine, 32, rescale=True)
    assert 3 < difference(coarse, 16) / difference(fine, 32) < 5


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
