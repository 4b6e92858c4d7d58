"""Dilated kernels against the triangles that they are defined by, and against what they are said to do to signals."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from s4nd.conv.dilated import dilated
from tests.conv.test_held import SIZES, kernel


def triangles(n, b, align, causal):
    """(2n - 1, 2b - 1): the share of trained lag i that lag j takes, with fractions."""
    A, half, w = np.zeros((2 * n - 1, 2 * b - 1)), Fraction(1, 2), Fraction(n, b)
    for i in range(-(b - 1), b):
        x = w * i if align == "centre" else w * (i + half) - half
        if causal and i == 0:
            x = max(x, Fraction(0))
        for j in range(-(n - 1), n):
            A[j + n - 1, i + b - 1] = float(max(0, 1 - abs(j - x)))
    return torch.from_numpy(A)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("align", ["centre", "edge"])
@pytest.mark.parametrize("b, n", SIZES)
def test_each_lag_is_shared_by_the_two_next_to_where_it_lies(b, n, align, causal):
    """At most 2 b / n + 2 products a lag, each rounded to 1e-16."""
    k = kernel(b, causal, 2, 3)
    found, wanted = dilated(k, n, align=align, causal=causal), k @ triangles(n, b, align, causal).T
    assert found.shape == (2, 3, 2 * n - 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15 * (2 * b / n + 2) * k.abs().max().item())


@pytest.mark.parametrize("b, n", [(8, 16), (8, 12), (7, 5), (8, 64), (8, 3)])
@pytest.mark.parametrize("align", ["centre", "edge"])
def test_causal_kernel_stays_causal_and_whole(b, n, align):
    k = dilated(kernel(b, True), n, align=align, causal=True)
    assert (k[: n - 1] == 0).all() and k[n - 1 :].abs().max() > 0.01
    if n >= b:  # on a coarser grid the last lag lies beyond the axis
        torch.testing.assert_close(k.sum(), kernel(b, True).sum(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("b, n", [(8, 12), (8, 11), (6, 30), (9, 5)])
def test_answer_is_the_kernels_to_the_signal_interpolated_between_samples(b, n):
    """Of a kernel that ends within the axis, in its middle, where no end is seen."""
    k = kernel(b, False)
    k[: b - 1 - b // 4], k[b + b // 4 :] = 0, 0
    fine, u = dilated(k, n, align="centre", causal=False), torch.randn(n, dtype=torch.float64)
    x = n // 2
    found = sum(fine[n - 1 + x - s].item() * u[s].item() for s in range(n))
    wanted = sum(k[b - 1 + i].item() * np.interp(x - i * n / b, np.arange(n), u) for i in range(-(b // 4), b // 4 + 1))
    assert found == pytest.approx(wanted, abs=1e-14 * b)


@pytest.mark.parametrize("w", [2, 3, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_samples_within_a_trained_pixel_belong_to_signals_of_their_own(w, causal):
    b = 7
    k, u = kernel(b, causal), torch.randn(w * b, dtype=torch.float64)
    fine = dilated(k, w * b, align="centre", causal=causal)
    n = w * b
    found = torch.stack([(fine[n - 1 + x - torch.arange(n)] * u).sum() for x in range(n)])
    for phase in range(w):
        wanted = torch.stack([(k[b - 1 + p - torch.arange(b)] * u[phase::w]).sum() for p in range(b)])
        torch.testing.assert_close(found[phase::w], wanted, rtol=0, atol=1e-14 * b)


def test_gradients_are_those_of_the_matrix():
    k = kernel(6, False).requires_grad_()
    weight = torch.randn(2 * 15 - 1, dtype=torch.float64)
    (dilated(k, 15, align="centre", causal=False) * weight).sum().backward()
    torch.testing.assert_close(k.grad, weight @ triangles(15, 6, "centre", False), rtol=0, atol=1e-13)
