"""The layer against the dense convolution with its own kernels, and against what its arguments promise."""

import copy

import pytest
import torch

from s4nd import S4ND
from s4nd.conv.dense import dense_conv
from s4nd.nn.kernels import KERNELS

F64 = torch.float64


@torch.no_grad()
def expected_output(layer: S4ND, u: torch.Tensor) -> torch.Tensor:
    """Dense direct sum with the layer's 1-D kernels."""
    y = dense_conv(u, [layer.kernel_lags(i, n) for i, n in enumerate(u.shape[2:])])
    return (y + layer.D.reshape(*layer.D.shape, *[1] * layer.ndim) * u[:, None]).flatten(1, 2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [(1,), (7,), (6, 5), (1, 4), (3, 2, 4), (2, 3, 1, 4)])
def test_layer_equals_dense_convolution_for_one_to_four_axes(sizes, kernel):
    torch.manual_seed(0)
    causal_first = [i > 0 for i in range(len(sizes))]
    layer = S4ND(3, len(sizes), d_state=8, kernel=kernel, rank=2, channels=2, bidirectional=causal_first, dtype=F64)
    u = torch.randn(2, 3, *sizes, dtype=F64)
    expected = expected_output(layer, u)
    torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-12 * expected.abs().max())


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    for kernel in KERNELS:
        layer = S4ND(4, d_state=8, kernel=kernel, rank=2, channels=2, base_size=5, bandlimit=0.5)
        layer(torch.randn(2, 4, 5, 6)).square().sum().backward()
        assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in layer.parameters())


def test_causal_axis_does_not_see_the_future_and_two_sided_axis_does():
    torch.manual_seed(0)
    layer = S4ND(2, 2, d_state=8, bidirectional=[False, True], dtype=F64)
    u = torch.randn(1, 2, 6, 6, dtype=F64)
    v = u.clone()
    v[:, :, 4:] += 1
    assert torch.equal(layer(u)[:, :, :4], layer(v)[:, :, :4])
    w = u.clone()
    w[..., 4:] += 1
    assert not torch.isclose(layer(u)[..., :4], layer(w)[..., :4]).any(dim=-1).all()


def test_dense_form_sums_over_the_input_channels():
    """Kernel c of the pair (o, h) is number o C + c of head h; output c O + o sums it over h."""
    torch.manual_seed(0)
    O, C = 4, 2  # noqa: E741
    layer = S4ND(3, 2, d_state=8, out_channels=O, channels=C, dtype=F64)
    u = torch.randn(2, 3, 5, 4, dtype=F64)
    y = dense_conv(u, [layer.kernel_lags(i, n) for i, n in enumerate(u.shape[2:])]).sum(2)
    y = torch.stack([y[:, o * C + c] for c in range(C) for o in range(O)], dim=1)
    torch.testing.assert_close(layer(u), y, rtol=0, atol=1e-12 * y.detach().abs().max())


@pytest.mark.parametrize("options", [{"rank": 1}, {"rank": 8}, {"rank": 8, "ndim": 3}, {"out_channels": 3}])
def test_initial_output_variance_does_not_depend_on_rank_or_on_being_dense(options):
    """Averaged over 60 draws of the parameters, within a factor of 2 of the depthwise layer of rank 1."""

    def variance(ndim=2, **options):
        torch.manual_seed(0)
        total = 0.0
        for _ in range(60):
            layer = S4ND(8, ndim, d_state=4, kernel="s4d", dt_min=0.3, dt_max=0.3, **options)
            if layer.D is not None:
                torch.nn.init.zeros_(layer.D)
            with torch.no_grad():
                total += layer(torch.randn(2, 8, *[6] * ndim)).var()
        return total

    assert 0.5 < variance(**options) / variance(options.get("ndim", 2)) < 2


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_product_in_half_precision_and_the_kernel_in_float32(autocast):
    torch.manual_seed(0)
    layer, u = S4ND(3, d_state=8), torch.randn(2, 3, 9, 8)
    with torch.autocast("cpu", dtype=autocast):
        y = layer(u)
        kernel = layer.kernel_lags(0, 9)
    assert kernel.dtype == torch.float32
    # Two products and the skip, each rounded: a convolution in this dtype does no better.
    assert (y - layer(u)).abs().max() <= 4 * torch.finfo(autocast).eps * layer(u).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_kernel_parameters_in_float32_and_unchanged(dtype):
    layer = S4ND(3, d_state=8)
    before = copy.deepcopy(layer.kernels.state_dict())
    layer.to(dtype)
    assert layer.D.dtype == dtype
    for name, value in layer.kernels.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == torch.float32
    assert layer(torch.randn(2, 3, 5, 5, dtype=dtype)).dtype == dtype
    assert {p.dtype for p in S4ND(3, dtype=dtype).kernels.parameters()} == {torch.float32}


def test_evaluation_computes_the_kernels_once_until_something_changes(monkeypatch):
    layer = S4ND(3, d_state=8, base_size=6).eval()
    calls = []
    compute = S4ND._compute_lags
    monkeypatch.setattr(S4ND, "_compute_lags", lambda self, axis, n: calls.append((axis, n)) or compute(self, axis, n))
    u = torch.randn(1, 3, 6, 7)

    @torch.no_grad()
    def fresh() -> bool:
        calls.clear()
        y, computed = layer(u), len(calls)
        torch.testing.assert_close(y, copy.deepcopy(layer).train()(u))
        return computed > 0

    assert fresh() and not fresh()
    with torch.no_grad():
        layer.kernels[0].log_dt += 0.1  # as an EMA of the weights does, in evaluation
    assert fresh() and not fresh()
    layer.load_state_dict(S4ND(3, d_state=8, base_size=6).state_dict())
    assert fresh() and not fresh()
    for name, value in dict(bandlimit=0.3, l_max=(4, 4), align="edge").items():
        setattr(layer, name, value)
        assert fresh() and not fresh()
    layer.train().eval()
    assert fresh()
    layer.double()
    u = u.double()
    assert fresh() and not fresh()
    calls.clear()
    layer(u)  # with gradients enabled a cached kernel would cut the parameters off
    assert calls


@pytest.mark.parametrize("size", [(4, 4), (24, 32)])  # where evaluation convolves along the axes, and where it does not
def test_training_mode_without_gradients_computes_what_it_does_with_them(size):
    """Bit for bit: a checkpointed block is run without first, and again with them."""
    layer, u = S4ND(4, d_state=8), torch.randn(2, 4, *size)
    layer.eval()
    with torch.no_grad():
        layer(u)  # something is kept
        without = layer.train()(u)
    assert torch.equal(without, layer(u))


def test_cached_kernels_stay_out_of_checkpoints_and_copies():
    layer = S4ND(3, d_state=8).eval()
    names = set(layer.state_dict())
    with torch.no_grad():
        layer(torch.randn(1, 3, 4, 4))
    assert set(layer.state_dict()) == names
    assert layer.kept.entries == 1 and copy.deepcopy(layer).kept.entries == 0


def test_inference_mode_works_before_and_after_training_mode():
    layer, u = S4ND(3, d_state=8).eval(), torch.randn(1, 3, 4, 4)
    with torch.inference_mode():
        y = layer(u)
    torch.testing.assert_close(layer(u), y)


def test_layer_built_on_the_meta_device_is_filled_by_reset_parameters():
    layer = S4ND(4, d_state=8, init="hippo", n_ssm=2, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    reference = S4ND(4, d_state=8, init="hippo", n_ssm=2)
    for name in ("log_A_real", "A_imag", "B", "P"):
        assert torch.equal(getattr(layer.kernels[0], name), getattr(reference.kernels[0], name))
    assert layer(torch.randn(1, 4, 5, 5)).isfinite().all()
    with torch.device("meta"):
        assert S4ND(4).D.is_meta


def test_hippo_gives_half_the_heads_each_operator():
    layer = S4ND(4, 1, d_state=8, init="hippo", n_ssm=None)
    legs, fout = S4ND(1, 1, d_state=8, init="legs").kernels[0], S4ND(1, 1, d_state=8, init="fout").kernels[0]
    for head, expected in enumerate([legs, legs, fout, fout]):
        assert torch.equal(layer.kernels[0].A_imag[head], expected.A_imag[0])


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_parameters_stay_finite_under_random_steps_at_a_high_rate(kernel):
    """dt and A start at the ends of their ranges and walk at random, at lr 0.1."""
    torch.manual_seed(0)
    layer = S4ND(4, 1, d_state=4, kernel=kernel, n_ssm=None)
    for p, end in zip(layer.kernels[0].log_dt, (-14.0, -13.0, 4.0, 4.6), strict=True):
        p.data.fill_(end)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(200):
        u = torch.randn(1, 4, 8)
        layer(u).sum().backward()
        for p in layer.parameters():
            assert p.grad.isfinite().all()
            p.grad.copy_(torch.randn_like(p))
        optimizer.step()
        optimizer.zero_grad()
    assert layer(u).isfinite().all()


WRONG = {
    "ndim": (dict(ndim=0), "ndim must be a positive integer, got 0"),
    "kernel": (dict(kernel="s5"), r"kernel must be one of \['dss', 'ema', 'lru', 's4', 's4d'\], got 's5'"),
    "init": (
        dict(init="lin"),
        r"init of kernel='s4' must be one of \['fout', 'hippo', 'legs', 'legt', 'random'\], got 'lin'",
    ),
    "axes": (dict(base_size=(1, 2, 3)), r"base_size must be one value or one per axis \(ndim=2\), got \(1, 2, 3\)"),
    "size": (dict(base_size=0), "base_size must be a positive integer, got 0"),
    "n_ssm": (dict(n_ssm=2), "n_ssm must divide d_model=3 and be a multiple of 1 for init='fout', got 2"),
    "hippo": (dict(init="hippo"), "n_ssm must divide d_model=3 and be a multiple of 2 for init='hippo', got 1"),
    "state": (dict(d_state=7), "d_state must be even and at least 2.*got 7"),
    "dt": (dict(dt_min=1.0, dt_max=0.1), "need 1e-06 <= dt_min <= dt_max <= 100.0, got 1.0 and 0.1"),
    "disc": (dict(disc="zoh"), r"disc of kernel='s4' must be one of \['bilinear'\], got 'zoh'"),
    "disc4d": (
        dict(kernel="s4d", disc="euler"),
        r"disc of kernel='s4d' must be one of \['async', 'bilinear', 'dirac', 'zoh'\], got 'euler'",
    ),
    "align": (dict(align="center"), r"align must be one of \('edge', 'centre'\), got 'center'"),
    "backend": (dict(backend="cuda"), r"backend must be one of .*got 'cuda'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_refused_with_what_was_needed_and_what_came(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        S4ND(3, **options)


@pytest.mark.parametrize(
    ("shape", "got"),
    [((2, 3, 4), r"\(2, 3, 4\)"), ((2, 4, 5, 5), r"\(2, 4, 5, 5\)"), ((2, 3, 0, 5), r"\(2, 3, 0, 5\)")],
)
def test_wrong_input_shape_is_refused_with_both_shapes(shape, got):
    with pytest.raises(ValueError, match=rf"needs u \(B, d_model=3, n_1, n_2\), no axis empty, got {got}"):
        S4ND(3)(torch.zeros(shape))


def test_integer_input_is_refused():
    with pytest.raises(ValueError, match=r"floating-point u, got torch.uint8"):
        S4ND(3)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(("H", "size"), [(3, (7, 7)), (8, (60, 61)), (2, (5, 300)), (2, (300,)), (4, (3, 5, 4))])
@pytest.mark.parametrize("options", [{}, dict(rank=2, channels=2), dict(out_channels=3)])
def test_evaluation_equals_training_for_every_form_and_batch(H, size, options):
    """Tiny grids, blocks, FFTs: what is kept between calls serves batches of any length."""
    torch.manual_seed(0)
    layer = S4ND(H, len(size), d_state=8, kernel="s4d", dtype=F64, **options)
    for B in (1, 5, 2):
        u = torch.randn(B, H, *size, dtype=F64)
        expected = layer.train()(u).detach()
        layer.eval()
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-12 * expected.abs().max())


def test_cache_of_evaluation_forgets_old_grids():
    layer = S4ND(2, 1, d_state=8).eval()
    with torch.no_grad():
        for n in range(3, 40):
            layer(torch.randn(1, 2, n))
    assert 1 < layer.kept.entries <= 8


@pytest.mark.parametrize("size", [(7, 7), (60, 61), (9, 300)])
def test_frozen_layer_in_evaluation_passes_gradients_to_its_input(size):
    torch.manual_seed(0)
    layer = S4ND(8, d_state=8, kernel="s4d", dtype=F64)
    u = torch.randn(5, 8, *size, dtype=F64, requires_grad=True)
    expected = torch.autograd.grad(layer(u).square().sum(), u)[0]
    layer.eval().requires_grad_(False)
    got = torch.autograd.grad(layer(u).square().sum(), u)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max())
