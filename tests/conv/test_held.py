"""Held kernels against the matrix of overlaps, and against what they are said to do to signals."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from s4nd.conv.held import held

SIZES = [(8, 16), (8, 12), (8, 32), (7, 21), (7, 5), (9, 4), (8, 3), (5, 1), (1, 4), (14, 15), (6, 6)]


def cell(lag, align, causal):
    """[begin, end] of a lag, in samples of its grid."""
    if align == "edge":
        return Fraction(lag), Fraction(lag + 1)
    half = Fraction(1, 2)
    return (Fraction(0) if causal and lag == 0 else lag - half), lag + half


def overlaps(n, b, align, causal):
    """(2n - 1, 2b - 1): the share of trained lag i that lag j takes, with fractions."""
    A = np.zeros((2 * n - 1, 2 * b - 1))
    for j in range(-(n - 1), n):
        for i in range(-(b - 1), b):
            (low, high), (first, last) = cell(j, align, causal), cell(i, align, causal)
            shared = min(high * b / Fraction(n), last) - max(low * b / Fraction(n), first)
            A[j + n - 1, i + b - 1] = float(max(shared, 0) / (last - first))
    return torch.from_numpy(A)


def kernel(b, causal, *shape, dtype=torch.float64):
    k = torch.randn(*shape, 2 * b - 1, dtype=dtype, generator=torch.Generator().manual_seed(b))
    return torch.where(torch.arange(-(b - 1), b) >= 0, k, 0) if causal else k


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("align", ["centre", "edge"])
@pytest.mark.parametrize("b, n", SIZES)
def test_each_lag_takes_its_share_of_every_trained_one(b, n, align, causal):
    """A sum of at most 2 (2b - 1) terms and its differences, each rounded to 1e-16."""
    k = kernel(b, causal, 2, 3)
    found, wanted = held(k, n, align=align, causal=causal), k @ overlaps(n, b, align, causal).T
    assert found.shape == (2, 3, 2 * n - 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15 * 4 * b * k.abs().max().item())


@pytest.mark.parametrize("b, n", [(8, 16), (8, 12), (7, 5), (8, 64)])
def test_causal_kernel_stays_causal(b, n):
    for align in ("centre", "edge"):
        k = held(kernel(b, True), n, align=align, causal=True)
        assert (k[: n - 1].abs() < 1e-15).all() and k[n - 1 :].abs().max() > 0.01


@pytest.mark.parametrize("b, n", [(8, 16), (8, 12), (8, 11), (6, 30)])
def test_answer_is_the_trained_one_to_the_signal_averaged_over_a_trained_pixel(b, n):
    """Of a kernel that ends within the axis, so that no lag is cut off."""
    reach, w = b // 2, n / b
    k = kernel(b, False)
    k[: b - 1 - reach], k[b + reach :] = 0, 0
    fine = held(k, n, align="centre", causal=False)
    u = torch.randn(n, dtype=torch.float64)
    total = torch.cat(
        [torch.zeros(1, dtype=torch.float64), u.cumsum(0)]
    )  # of the signal as a function, at pixels' ends

    def mean(s):
        """Over [s - 1/2, s + 1/2] trained pixels; pixel x of the fine grid is [x / w, (x + 1) / w]."""
        ends = [min(max((s + d) * w, 0.0), float(n)) for d in (-0.5, 0.5)]
        integral = [np.interp(e, np.arange(n + 1), total.numpy()) for e in ends]
        return (integral[1] - integral[0]) / w

    lags = range(-reach, reach + 1)
    for x in range(n):
        found = sum(fine[n - 1 + x - s].item() * u[s].item() for s in range(n))
        wanted = sum(k[b - 1 + i].item() * mean((x + 0.5) / w - i) for i in lags)
        assert found == pytest.approx(wanted, abs=1e-13 * b)


@pytest.mark.parametrize("w", [3, 5])
def test_signal_that_is_constant_over_trained_pixels_is_answered_as_there_at_their_centres(w):
    b = 8
    k, u = kernel(b, False), torch.randn(b, dtype=torch.float64)
    fine = held(k, w * b, align="centre", causal=False)
    trained = torch.stack([(k[b - 1 + p - torch.arange(b)] * u).sum() for p in range(b)])
    long, n = u.repeat_interleave(w), w * b
    found = torch.stack([(fine[n - 1 + x - torch.arange(n)] * long).sum() for x in range(n)])
    torch.testing.assert_close(found[w // 2 :: w], trained, rtol=0, atol=1e-13)
    between = found[w // 2 : -(w // 2)]  # from the first centre to the last one: linear between them
    x = np.arange(len(between)) / w
    torch.testing.assert_close(between.numpy(), np.interp(x, np.arange(b), trained.numpy()), rtol=0, atol=1e-13)


def test_gradients_are_those_of_the_matrix():
    k = kernel(6, False).requires_grad_()
    weight = torch.randn(2 * 15 - 1, dtype=torch.float64)
    (held(k, 15, align="centre", causal=False) * weight).sum().backward()
    torch.testing.assert_close(k.grad, weight @ overlaps(15, 6, "centre", False), rtol=0, atol=1e-13)
