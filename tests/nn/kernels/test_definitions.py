"""DSS, LRU and EMA against the formulas of their papers, written out plainly, in float64."""

import math

import pytest
import torch

from s4nd.nn.kernels import DSSKernel, EMAKernel, LRUKernel

F64 = torch.float64


def complex_(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.detach().contiguous())


@pytest.mark.parametrize("damping", [0.5, 0.0, -0.5, -4.0])
@pytest.mark.parametrize(("L", "rate"), [(1, 1.0), (2, 1.0), (7, 0.5), (12, 1.0)])
def test_dss_is_a_softmax_over_rows(L, rate, damping):
    """Up to a growth of e^48 over the axis (damping -4, 12 steps of 1)."""
    torch.manual_seed(0)
    kernel = DSSKernel(3, 8, 2, dt_min=0.5, dt_max=1.0, dtype=F64)
    kernel.A_real.data.fill_(-damping)
    kernel.A_imag.data[:, 0] = 0.1
    A = torch.complex(kernel.A_real, kernel.A_imag).detach()  # (1, N/2)
    P = (kernel.log_dt.detach().exp()[:, None] * rate * A)[..., None] * torch.arange(L)  # (H, N/2, L)
    terms = torch.exp(P - P.real.amax(-1, keepdim=True))
    softmax = terms / terms.sum(-1, keepdim=True)
    expected = 2 * torch.einsum("chn,hnl->chl", complex_(kernel.C) / A, softmax).real
    torch.testing.assert_close(kernel(L, rate).detach(), expected, rtol=0, atol=1e-11 * expected.abs().max())


def test_dss_stays_bounded_where_the_sum_of_its_softmax_vanishes():
    """e^(L x) = 1 with x != 0: L equally spaced points of the unit circle sum to zero."""
    kernel = DSSKernel(1, 2, dt_min=1.0, dt_max=1.0)
    kernel.A_real.data.zero_()
    kernel.A_imag.data.fill_(2 * math.pi / 8)
    k = kernel(8)
    k.sum().backward()
    assert k.abs().max() <= 2 * 1e3 * kernel.C.norm()  # |gain| <= 1
    assert all(p.grad.isfinite().all() for p in kernel.parameters())


@pytest.mark.parametrize("align", ["edge", "centre"])
def test_dss_has_no_recurrence_without_a_length(align):
    with pytest.raises(ValueError, match="DSSKernel depends on the axis's length: its recurrence needs n, got None"):
        DSSKernel(2, 4).recurrence(None, align=align)


def test_lru_at_rate_one_is_its_own_recurrence():
    torch.manual_seed(0)
    kernel = LRUKernel(3, 8, 2, max_phase=2 * math.pi, dtype=F64)
    lam = torch.exp(torch.complex(-kernel.nu.exp(), kernel.theta)).detach()[0]
    gamma_B = (kernel.log_gamma.exp() * complex_(kernel.B)).detach()[0]
    x, y = gamma_B, []
    for _ in range(20):
        y.append(2 * torch.einsum("chn,n->ch", complex_(kernel.C), x).real)
        x = lam * x
    expected = torch.stack(y, dim=-1)
    torch.testing.assert_close(kernel(20).detach(), expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize("rate", [2, 3])
def test_lru_at_a_whole_rate_is_its_recurrence_with_the_input_held(rate):
    """Read after each `rate` steps, of an impulse that is held for `rate` steps."""
    torch.manual_seed(0)
    kernel = LRUKernel(3, 8, 2, dtype=F64)
    response = kernel(rate * 6).detach()
    expected = torch.stack([response[..., rate * j : rate * (j + 1)].sum(-1) for j in range(6)], dim=-1)
    torch.testing.assert_close(kernel(6, rate).detach(), expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize(("r_min", "r_max", "max_phase"), [(0.0, 1.0, math.pi), (0.9, 0.99, 0.3), (0.5, 0.6, 6.28)])
def test_lru_starts_in_its_ring_with_unit_power(r_min, r_max, max_phase):
    """gamma = sqrt(1 - |lambda|^2) gives each mode unit power under white noise; |lambda|^2 is uniform on the ring."""
    torch.manual_seed(0)
    kernel = LRUKernel(64, 64, r_min=r_min, r_max=r_max, max_phase=max_phase, n_ssm=None, dtype=F64)
    radius = torch.exp(-kernel.nu.exp()).detach()
    assert r_min <= radius.min() and radius.max() <= r_max
    assert 0 <= kernel.theta.min() and kernel.theta.max() <= max_phase
    power = kernel.log_gamma.exp().square() / (1 - radius.square())
    torch.testing.assert_close(power, torch.ones_like(power))
    # The mean of n uniform numbers has standard deviation 1 / sqrt(12 n); five of them.
    uniform = (radius.square() - r_min**2) / (r_max**2 - r_min**2)
    assert (uniform.mean() - 0.5).abs() < 5 / math.sqrt(12 * uniform.numel())


def test_lru_near_lambda_one_holds_its_input_without_losing_digits():
    """(lambda^r - 1) / (lambda - 1) is r at lambda = 1, in float32 too: within r (r - 1) |x| / 2 and a few roundings."""
    kernel = LRUKernel(1, 2)
    kernel.nu.data.fill_(math.log(1e-7))
    kernel.theta.data.fill_(1e-7)
    one, eight, half = (
        kernel.modes(kernel.values(), 1, rate, fraction)[1].detach()
        for rate, fraction in ((1.0, 1.0), (8.0, 1.0), (1.0, 0.5))
    )
    atol = (8 * 7 * 1.5e-7 + 8 * 1e-6) * one.norm()
    torch.testing.assert_close(eight, 8 * one, rtol=0, atol=float(atol))
    torch.testing.assert_close(half, one / 2, rtol=0, atol=float(atol))


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_ema_is_a_sum_of_plain_moving_averages(rate):
    torch.manual_seed(0)
    kernel = EMAKernel(3, 5, 2, dtype=F64)
    assert kernel.C.shape == (2, 3, 5)
    q = torch.exp(-rate * kernel.log_dt.exp()[:, None] * kernel.log_A_real.exp()).detach()  # (H, N)
    u = torch.randn(3, 12, dtype=F64)
    average, expected = torch.zeros(3, 5, dtype=F64), []
    for u_l in u.unbind(-1):
        average = q * average + (1 - q) * u_l[:, None]
        expected.append(torch.einsum("chn,hn->ch", kernel.C.detach(), average))
    expected = torch.stack(expected, dim=-1)
    k = kernel(12, rate).detach()
    got = torch.stack([(k[..., :n].flip(-1) * u[:, :n]).sum(-1) for n in range(1, 13)], dim=-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize("align", ["edge", "centre"])
def test_ema_has_unit_gain_for_a_constant_at_every_rate(align):
    """In the centre only the half of the last sample that lies on this side is averaged: its reverse half is missing."""
    kernel = EMAKernel(2, 4, dt_min=0.5, dt_max=0.5, dtype=F64)
    kernel.C.data.fill_(1.0)
    for rate in (0.5, 1.0, 2.0):
        gain = kernel(400, rate, align=align).sum(-1)
        torch.testing.assert_close(gain, torch.full_like(gain, 4.0), rtol=0, atol=1e-12)


def test_lru_ring_is_checked():
    with pytest.raises(ValueError, match=r"need 0 <= r_min < r_max <= 1, got 0\.9 and 0\.5"):
        LRUKernel(2, 4, r_min=0.9, r_max=0.5)
    with pytest.raises(ValueError, match=r"max_phase must be in \(0, 2 pi\], got 0"):
        LRUKernel(2, 4, max_phase=0)
