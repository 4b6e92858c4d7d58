"""Convolution axis by axis against the direct sum with the outer-product kernel (conv/dense.py), in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s4nd.conv import ALGORITHMS, lags, separable_conv, toeplitz
from s4nd.conv.dense import dense_conv
from s4nd.conv.fft import fast_length
from s4nd.conv.toeplitz import toeplitz_matrix

F64 = torch.float64


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    rank=st.integers(1, 3),
    copies=st.integers(1, 2),
    algorithm=st.sampled_from(["auto", *ALGORITHMS]),
)
def test_separable_equals_dense(sizes, rank, copies, algorithm):
    torch.manual_seed(0)
    u = torch.randn(2, 3, *sizes, dtype=F64)
    kernels = [torch.randn(rank, copies, 3, 2 * n - 1, dtype=F64) for n in sizes]
    expected = dense_conv(u, kernels)
    got = separable_conv(u, kernels, algorithm=algorithm)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * max(1.0, expected.abs().max()))


def test_long_axis_takes_the_fft_and_agrees_with_the_matrix():
    torch.manual_seed(0)
    u, k = torch.randn(1, 2, 300, dtype=F64), torch.randn(1, 1, 2, 599, dtype=F64)
    expected = separable_conv(u, [k], algorithm="toeplitz")
    torch.testing.assert_close(separable_conv(u, [k]), expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients(algorithm):
    torch.manual_seed(0)
    u = torch.randn(1, 2, 3, 4, dtype=F64, requires_grad=True)
    kernels = [torch.randn(2, 1, 2, 2 * n - 1, dtype=F64, requires_grad=True) for n in (3, 4)]
    conv = lambda u, *kernels: separable_conv(u, kernels, algorithm=algorithm)  # noqa: E731
    assert torch.autograd.gradcheck(conv, (u, *kernels))


@pytest.mark.parametrize("sizes", [(5,), (4, 3), (2, 3, 4), (2, 1, 3, 2)])
def test_products_image_by_image_equal_dense_with_gradients(monkeypatch, sizes):
    """Large images take this way on a CPU; here all do."""
    monkeypatch.setattr(toeplitz, "BLOCK_WORK", 0)
    torch.manual_seed(0)
    u = torch.randn(2, 3, *sizes, dtype=F64, requires_grad=True)
    kernels = [torch.randn(2, 2, 3, 2 * n - 1, dtype=F64, requires_grad=True) for n in sizes]
    expected = dense_conv(u, kernels)
    got = separable_conv(u, kernels, algorithm="toeplitz")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.detach().abs().max())
    probe = torch.randn_like(expected)
    grads = [torch.autograd.grad((y * probe).sum(), [u, *kernels]) for y in (got, expected)]
    for g, e in zip(*grads, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12 * e.abs().max())


def test_channels_last_input_gives_the_same(monkeypatch):
    torch.manual_seed(0)
    u, k = torch.randn(2, 3, 6, 5, dtype=F64), [torch.randn(1, 1, 3, 2 * n - 1, dtype=F64) for n in (6, 5)]
    expected = separable_conv(u, k)
    for work in (0, 2**60):
        monkeypatch.setattr(toeplitz, "BLOCK_WORK", work)
        got = separable_conv(u.to(memory_format=torch.channels_last), k)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13 * expected.abs().max())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_toeplitz_matrix_holds_lag_t_minus_s(n):
    k = torch.arange(2.0 * n - 1) - (n - 1)  # the tap of a lag is the lag
    t = torch.arange(float(n))
    assert torch.equal(toeplitz_matrix(k), t[:, None] - t)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(("n", "L"), [(1, 1), (2, 1), (4, 4), (5, 3)])
def test_lags_hold_each_tap_where_the_definition_puts_it(n, L, align):
    forward, reverse = torch.randn(L), torch.randn(L)
    expected = {lag: 0.0 for lag in range(-n, n)}
    for j in range(L):
        expected[j] += forward[j].item()
        expected[-j if align == "centre" else -1 - j] += reverse[j].item()
    got = lags(forward, reverse, n, align)
    torch.testing.assert_close(got, torch.tensor([expected[lag] for lag in range(-(n - 1), n)]))
    causal = lags(forward, None, n, align)
    assert torch.equal(causal[n - 1 : n - 1 + L], forward)
    assert causal[: n - 1].count_nonzero() == 0


def test_fast_length_is_the_smallest_smooth_number():
    smooth = sorted(2**a * 3**b * 5**c for a, b, c in itertools.product(range(12), range(8), range(6)))
    for n in range(1, 2000):
        assert fast_length(n) == next(s for s in smooth if s >= n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fft_of_half_precision_signals_is_taken_in_float32(dtype):
    """The error is the rounding of the input and of the output only."""
    torch.manual_seed(0)
    u, k = torch.randn(1, 2, 37), torch.randn(1, 1, 2, 73) / 8
    exact = separable_conv(u.to(dtype).double(), [k.double()], algorithm="fft")
    got = separable_conv(u.to(dtype), [k], algorithm="fft")
    assert got.dtype == dtype
    assert (got - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_unknown_algorithm_and_wrong_number_of_kernels_are_refused():
    u, k = torch.randn(1, 1, 4), torch.randn(1, 1, 1, 7)
    with pytest.raises(ValueError, match=r"algorithm must be auto or one of \['fft', 'toeplitz'\], got 'winograd'"):
        separable_conv(u, [k], algorithm="winograd")
    with pytest.raises(ValueError, match=r"a kernel per axis.*\(1, 1, 4\), got 2 kernels"):
        separable_conv(u, [k, k])
