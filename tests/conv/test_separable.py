"""Convolution axis by axis against the direct sum with the outer-product kernel (conv/dense.py), in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from s4nd.conv import EVERYWHERE, lags, own, separable_conv
from s4nd.conv.definition import definition
from s4nd.conv.dense import dense_conv
from s4nd.conv.fft import fast_length, fft_along
from s4nd.conv.toeplitz import diagonal_sums, matrix_along, toeplitz_matrix
from s4nd.ops import blocks

F64 = torch.float64


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    rank=st.integers(1, 3),
    copies=st.integers(1, 2),
    algorithm=st.sampled_from(["auto", *EVERYWHERE]),
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


@pytest.mark.parametrize("algorithm", EVERYWHERE)
@pytest.mark.parametrize(("sizes", "rank", "copies"), [((3, 4), 2, 1), ((1, 2), 1, 2), ((2, 1, 3), 2, 2), ((5,), 1, 1)])
def test_gradients_of_first_and_second_order(sizes, rank, copies, algorithm):
    torch.manual_seed(0)
    u = torch.randn(1, 2, *sizes, dtype=F64, requires_grad=True)
    kernels = [torch.randn(rank, copies, 2, 2 * n - 1, dtype=F64, requires_grad=True) for n in sizes]
    skip = torch.randn(copies, 2, dtype=F64, requires_grad=True)
    conv = lambda u, skip, *kernels: separable_conv(u, kernels, skip, algorithm=algorithm)  # noqa: E731
    assert torch.autograd.gradcheck(conv, (u, skip, *kernels))
    assert torch.autograd.gradgradcheck(conv, (u, skip, *kernels), fast_mode=True)


def toeplitz_conv(u, k, axis):
    return matrix_along(u, toeplitz_matrix(k), axis)


@pytest.mark.parametrize("along", [toeplitz_conv, fft_along])
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("lead", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_gradients_along_one_axis_with_broadcast_rank_and_copies(along, axis, lead):
    """A signal of rank or of copies 1 gets the sum of the gradients over the kernels'."""
    torch.manual_seed(0)
    u = torch.randn(*lead, 2, 2, 2, 3, dtype=F64, requires_grad=True)
    k = torch.randn(2, 2, 2, 2 * u.shape[axis] - 1, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, k: along(u, k, axis), (u, k))
    assert torch.autograd.gradgradcheck(lambda u, k: along(u, k, axis), (u, k), fast_mode=True)


@pytest.mark.parametrize("align", ["edge", "centre"])
def test_gradients_of_lags(align):
    forward, reverse = (torch.randn(2, 3, dtype=F64, requires_grad=True) for _ in range(2))
    for n in (3, 5):
        assert torch.autograd.gradcheck(lambda f, r, n=n: lags(f, r, n, align), (forward, reverse))
        assert torch.autograd.gradcheck(lambda f, n=n: lags(f, None, n, align), (forward,))


@pytest.mark.parametrize("skipped", [True, False])
@pytest.mark.parametrize(("rank", "copies"), [(1, 1), (2, 2)])
@pytest.mark.parametrize(
    "along", [("toeplitz", "toeplitz", "toeplitz"), ("fft", "toeplitz", "fft"), ("kronecker",) * 3]
)
def test_own_passes_equal_dense_with_gradients_of_both_orders(monkeypatch, along, rank, copies, skipped):
    """In float64 on a CPU; with each algorithm along each kind of axis, the first, the last and one between."""
    monkeypatch.setattr(own, "choose", lambda *_: list(along))
    torch.manual_seed(0)
    u = torch.randn(2, 3, 2, 3, 4, dtype=F64, requires_grad=True)
    kernels = [torch.randn(rank, copies, 3, 2 * n - 1, dtype=F64, requires_grad=True) for n in u.shape[2:]]
    skip = torch.randn(copies, 3, dtype=F64, requires_grad=True) if skipped else None
    expected = dense_conv(u, kernels)
    if skipped:
        expected = expected + skip.reshape(copies, 3, 1, 1, 1) * u[:, None]
    got = separable_conv(u, kernels, skip)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.detach().abs().max())
    probe = torch.randn_like(expected)
    leaves = [u, *kernels, *([skip] if skipped else [])]
    once = torch.autograd.grad((got * probe).sum(), leaves, retain_graph=True)
    first, exact = (torch.autograd.grad((y * probe).sum(), leaves, create_graph=True) for y in (got, expected))
    second, exact2 = (torch.autograd.grad(sum(g.square().sum() for g in gs), leaves) for gs in (first, exact))
    for g, e in zip((*once, *first, *second), (*exact, *exact, *exact2), strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12 * e.detach().abs().max())


@pytest.mark.parametrize("algorithm", EVERYWHERE)
@pytest.mark.parametrize("frozen", ["signal", "kernels", "skip"])
def test_what_needs_no_gradient_gets_none(frozen, algorithm):
    torch.manual_seed(0)
    u, skip = torch.randn(2, 3, 4, 5, dtype=F64), torch.randn(1, 3, dtype=F64)
    kernels = [torch.randn(1, 1, 3, 2 * n - 1, dtype=F64) for n in (4, 5)]
    leaves = {"signal": [u], "kernels": kernels, "skip": [skip]}
    for name, tensors in leaves.items():
        for x in tensors:
            x.requires_grad_(name != frozen)
    separable_conv(u, kernels, skip, algorithm=algorithm).square().sum().backward()
    exact = definition(u, kernels, skip, ["fft", "fft"]).square().sum()
    wanted = [x for tensors in leaves.values() for x in tensors if x.requires_grad]
    for x, e in zip(wanted, torch.autograd.grad(exact, wanted), strict=True):
        torch.testing.assert_close(x.grad, e, rtol=0, atol=1e-12 * e.abs().max())
    assert all(x.grad is None for x in leaves[frozen])


@pytest.mark.parametrize("algorithm", EVERYWHERE)
def test_channels_last_input_gives_the_same_and_keeps_its_layout(algorithm):
    torch.manual_seed(0)
    plain, k = torch.randn(2, 3, 6, 5, dtype=F64), [torch.randn(1, 1, 3, 2 * n - 1, dtype=F64) for n in (6, 5)]
    expected, grads = None, []
    for layout in (torch.contiguous_format, torch.channels_last):
        u = plain.to(memory_format=layout).requires_grad_()
        y = separable_conv(u, k, torch.ones(1, 3, dtype=F64), algorithm=algorithm)
        assert y[:, 0].is_contiguous(memory_format=layout)
        expected = y.detach() if expected is None else expected
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-13 * expected.abs().max())
        grads.append(torch.autograd.grad(y.square().sum(), u)[0])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13 * grads[0].abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ["auto", *EVERYWHERE])
@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 2)])
def test_no_image_gives_an_empty_result_and_zero_gradients(sizes, algorithm, dtype):
    """As torch's convolutions."""
    u, skip = torch.randn(0, 3, *sizes, dtype=dtype, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    kernels = [torch.randn(1, 2, 3, 2 * n - 1, requires_grad=True) for n in sizes]
    y = separable_conv(u, kernels, skip, algorithm=algorithm)
    assert y.shape == (0, 2, 3, *sizes)
    assert y.dtype == dtype
    y.sum().backward()
    assert u.grad.shape == u.shape
    assert all(x.grad.count_nonzero() == 0 for x in (*kernels, skip))


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("algorithm", ["auto", *EVERYWHERE])
def test_meta_device_gives_the_shape(algorithm, batch):
    u, skip = torch.empty(batch, 3, 4, 5, device="meta"), torch.empty(2, 3, device="meta")
    kernels = [torch.empty(1, 2, 3, 2 * n - 1, device="meta") for n in (4, 5)]
    y = separable_conv(u, kernels, skip, algorithm=algorithm)
    assert (y.shape, y.device.type) == ((batch, 2, 3, 4, 5), "meta")


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("algorithm", ["auto", *EVERYWHERE])
@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 2)])
def test_output_has_the_dtype_that_torchs_convolution_has_and_gradients_that_of_the_leaf(sizes, algorithm, dtype, low):
    u, skip = torch.randn(2, 3, *sizes, dtype=dtype, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    kernels = [torch.randn(1, 1, 3, 2 * n - 1, requires_grad=True) for n in sizes]
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=low, enabled=autocast):
            y = separable_conv(u, kernels, skip, algorithm=algorithm)
            if autocast and dtype != torch.float64:  # which torch's would refuse, its weights being float32
                conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(sizes)]
                assert y.dtype == conv(u, torch.ones(3, 1, *[1] * len(sizes)), groups=3).dtype == low
            else:
                assert y.dtype == dtype
        grads = torch.autograd.grad(y.sum(), [u, skip, *kernels])
        assert [g.dtype for g in grads] == [dtype] + [torch.float32] * (1 + len(kernels))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_toeplitz_matrix_holds_lag_t_minus_s(n):
    k = torch.arange(2.0 * n - 1) - (n - 1)  # the tap of a lag is the lag
    t = torch.arange(float(n))
    assert torch.equal(toeplitz_matrix(k), t[:, None] - t)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_diagonal_sums_are_the_transpose_of_the_toeplitz_matrix(n):
    k, T = torch.randn(3, 2 * n - 1, dtype=F64, requires_grad=True), torch.randn(3, n, n, dtype=F64)
    (expected,) = torch.autograd.grad(toeplitz_matrix(k), k, T)
    torch.testing.assert_close(diagonal_sums(T), expected, rtol=0, atol=1e-14)


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
    with pytest.raises(
        ValueError,
        match=r"algorithm must be auto or one of \['fft', 'fused', 'kronecker', 'toeplitz'\], got 'winograd'",
    ):
        separable_conv(u, [k], algorithm="winograd")
    with pytest.raises(ValueError, match=r"a kernel per axis.*\(1, 1, 4\), got 2 kernels"):
        separable_conv(u, [k, k])


@pytest.mark.parametrize("algorithm", EVERYWHERE)
@pytest.mark.parametrize("sizes", [(5, 4), (2, 3, 4)])
def test_a_block_for_each_head_gives_what_one_block_gives(monkeypatch, algorithm, sizes):
    torch.manual_seed(0)
    u, skip = torch.randn(2, 5, *sizes, dtype=F64), torch.randn(2, 5, dtype=F64)
    leaves = [u, skip, *(torch.randn(2, 2, 5, 2 * n - 1, dtype=F64) for n in sizes)]
    results = []
    for elements in (1, 2**19):
        monkeypatch.setattr(blocks, "ELEMENTS", elements)
        assert len(list(blocks.head_blocks(5, 1, u.device))) == (5 if elements == 1 else 1)
        for leaf in leaves:
            leaf.requires_grad_()
        y = separable_conv(u, leaves[2:], skip, algorithm=algorithm)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for one_by_one, together in zip(*results, strict=True):
        torch.testing.assert_close(one_by_one, together, rtol=0, atol=1e-12 * together.detach().abs().max())


@pytest.mark.parametrize("images", [2, 4, 128])
def test_one_matrix_rounds_no_more_than_its_definition_beside_a_large_skip(images):
    """In float32, values and the gradient of u: a skip within the matrix would take the digits of the small terms."""
    torch.manual_seed(0)
    exact = torch.randn(images, 8, 8, 8), 10 + torch.randn(1, 8), *(torch.randn(2, 1, 8, 15) / 100 for _ in range(2))
    probe, found = torch.randn(images, 1, 8, 8, 8), []
    plain = lambda u, skip, *kernels: definition(u, kernels, skip, ["kronecker"] * 2)  # noqa: E731
    own_form = lambda u, skip, *kernels: separable_conv(u, kernels, skip, algorithm="kronecker")  # noqa: E731
    for function, dtype in ((plain, F64), (own_form, torch.float32), (plain, torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in exact]
        y = function(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y, leaves[:1], probe.to(dtype))])
    for right, mine, theirs in zip(*found, strict=True):
        errors = [(x.double() - right).abs().max().item() for x in (mine, theirs)]
        assert errors[0] <= 2 * max(errors[1], torch.finfo(torch.float32).eps * right.abs().max().item() / 2)
