"""Layers and models whose kernels are held at other grids, against the trained grid's kernels and against the definition."""

import copy

import pytest
import timm
import torch
from torch import nn

import s4nd.models  # noqa: F401  registers the models
from s4nd import S4ND, frozen, set_base_size, set_resample
from s4nd.conv import REGRID, regrid
from s4nd.conv.dense import dense_conv
from tests.small import F64, assert_close

KERNELS = ("s4", "s4d", "dss", "lru", "ema")


def make(ndim=2, base=6, kernel="s4d", resample="hold", **options):
    torch.manual_seed(0)
    options = {"dtype": F64, "d_state": 8, "base_size": base, **options}
    return S4ND(3, ndim, kernel=kernel, resample=resample, **options)


def signal(*size, channels=3):
    return torch.randn(2, channels, *size, dtype=F64, generator=torch.Generator().manual_seed(1))


def by_definition(layer, u):
    """The dense convolution with the trained grid's kernels, each axis held or dilated, and all that comes after it."""
    kernels = []
    for axis, n in enumerate(u.shape[2:]):
        k = layer.kernel_lags(axis, layer.base_size[axis])
        method, causal = layer.resample[axis], not layer.bidirectional[axis]
        kernels.append(regrid(k, n, method, align=layer.align, causal=causal))
    y = dense_conv(u, kernels)
    return y if layer.D is None else y + layer.D.reshape(1, -1, layer.d_model, *[1] * layer.ndim) * u[:, None]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("align", ["centre", "edge"])
@pytest.mark.parametrize("method", REGRID)
def test_layer_is_the_convolution_with_its_trained_kernels_held_or_dilated(kernel, align, method):
    layer = make(kernel=kernel, align=align, rank=2, bidirectional=(True, False), resample=method)
    for size in ((12, 9), (6, 6), (4, 15), (1, 2)):
        u = signal(*size)
        expected = by_definition(layer, u)[:, 0]
        for training in (True, False):
            assert_close(layer.train(training)(u), expected)
        with torch.no_grad():
            assert_close(layer.eval()(u), expected)
            assert_close(layer.plan(size)(u), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", REGRID)
def test_at_the_trained_size_nothing_changes_bit_for_bit(kernel, method):
    u = signal(6, 6)
    layer, continuous = make(kernel=kernel, resample=method), make(kernel=kernel, resample="continuous")
    for training in (True, False):
        assert torch.equal(layer.train(training)(u), continuous.train(training)(u))
        assert not torch.equal(layer(signal(9, 9)), continuous(signal(9, 9)))


def test_axes_have_ways_of_their_own():
    layer, other = make(resample=("hold", "continuous")), make(resample="continuous")
    held_one = make(resample="hold")
    for n in (4, 12):
        assert torch.equal(layer.kernel_lags(0, n), held_one.kernel_lags(0, n))
        assert torch.equal(layer.kernel_lags(1, n), other.kernel_lags(1, n))


def test_axis_that_extends_is_not_held():
    layer, other = make(base=(None, 6)), make(base=(None, 6), resample="continuous")
    assert torch.equal(layer.kernel_lags(0, 9), other.kernel_lags(0, 9))


@pytest.mark.parametrize("align", ["centre", "edge"])
@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("method", REGRID)
def test_window_is_held_with_the_kernel_and_plans_cut_nothing_off(align, two_sided, window, method):
    layer = make(1, 8, align=align, bidirectional=two_sided, l_max=window, resample=method).eval()
    for n in (3, 8, 13, 16, 32):
        u, k = signal(n), layer.kernel_lags(0, n)
        reach = layer.taps(0, n) + (align == "edge" and two_sided)
        outside = (torch.arange(-(n - 1), n).abs() >= reach).nonzero().flatten()
        assert (k[..., outside] == 0).all() or k[..., outside].abs().max() < 1e-15
        with torch.no_grad():
            assert_close(layer(u), by_definition(layer, u)[:, 0])
            assert_close(layer.plan(n)(u), by_definition(layer, u)[:, 0])


def test_dense_layer_with_pooling_in_three_dimensions():
    layer = make(3, (4, 6, 6), out_channels=2, pool=(1, 2, 2), l_max=(2, 3, 3), rank=2).eval()
    u = signal(6, 12, 8)
    y = by_definition(layer, u).sum(2)
    expected = nn.functional.avg_pool3d(y, (1, 2, 2))
    assert_close(layer(u), expected)
    with torch.no_grad():
        assert_close(layer(u), expected)


@pytest.mark.parametrize("w", [3, 5])
def test_signal_constant_over_trained_pixels_is_answered_as_there_at_their_centres(w):
    layer = make(2, 4, rank=2).eval()
    u = signal(4, 4)
    fine = u.repeat_interleave(w, 2).repeat_interleave(w, 3)
    assert_close(layer(fine)[..., w // 2 :: w, w // 2 :: w], layer(u))


@pytest.mark.parametrize("w", [2, 3])
@pytest.mark.parametrize("kernel", ["s4d", "s4"])
def test_dilated_network_runs_the_trained_one_on_every_image_of_samples_a_trained_pixel_apart(w, kernel):
    torch.manual_seed(0)
    args = dict(img_size=6, num_classes=3, kernel=kernel, init="legs", d_state=8, rank=2, bidirectional=(True, False))
    model = timm.create_model("s4nd_iso_tiny", resample="dilate", **args).eval().double()
    u = signal(6 * w, 6 * w)
    with torch.no_grad():
        fine, logits = model.forward_features(u), []
        for i in range(w):
            for j in range(w):
                assert_close(fine[..., i::w, j::w], model.forward_features(u[..., i::w, j::w]))
                logits.append(model(u[..., i::w, j::w]))
        assert_close(model(u), torch.stack(logits).mean(0))


@pytest.mark.parametrize("kernel", ["s4d", "dss", "lru", "ema"])
@pytest.mark.parametrize("align", ["centre", "edge"])
def test_folded_layer_has_the_trained_kernels_on_their_grid_and_their_sums_on_a_finer_one(kernel, align):
    layer, other = make(1, 6, kernel, "fold", align=align), make(1, 6, kernel, "continuous", align=align)
    k = layer.kernel_lags(0, 6)
    assert torch.equal(k, other.kernel_lags(0, 6))
    fine = layer.kernel_lags(0, 18)  # lag j of the trained grid is 3 j - 1 to 3 j + 1, of edges 3 j to 3 j + 2
    first = 17 - 3 * 5 - (1 if align == "centre" else 0)
    total = fine[..., first : first + 33].unflatten(-1, (11, 3)).sum(-1)
    assert_close(total, k)
    assert layer.train(False)(signal(9)).isfinite().all()
    with torch.no_grad():
        assert_close(layer(signal(9)), layer.train()(signal(9)))


def test_folding_needs_modes():
    with pytest.raises(ValueError, match="resample='fold' needs the modes of a diagonal kernel"):
        make(kernel="s4", resample="fold")
    layer = make(kernel="s4", resample="hold")
    with pytest.raises(ValueError, match="use 'hold'"):
        set_resample(layer, "fold")
    with pytest.raises(ValueError, match="use 'hold'"):
        layer.resample = ("hold", "fold")
    assert layer.resample == ("hold", "hold")
    layer.load_state_dict(layer.state_dict())


def test_gradients_reach_the_parameters_through_the_held_kernel():
    layer = make(1, 4, kernel="s4d", d_state=2)
    u = signal(6)
    assert torch.autograd.gradcheck(
        lambda *values: torch.func.functional_call(
            layer, dict(zip([name for name, _ in layer.named_parameters()], values, strict=True)), (u,)
        ),
        tuple(p.detach().clone().requires_grad_() for p in layer.parameters()),
    )


def test_step_is_the_full_pass_on_the_trained_grid_and_refused_elsewhere():
    layer, u = make(1, 6, bidirectional=False).eval(), signal(6)
    state, outputs = None, []
    with torch.no_grad():
        for sample in u.unbind(2):
            y, state = layer.step(sample, state, n=6)
            outputs.append(y)
        assert_close(torch.stack(outputs, 2), layer(u))
    with pytest.raises(ValueError, match="no recurrence of its own: step needs n=6, the trained grid, got n=12"):
        layer.step(u[:, :, 0], n=12)


def test_another_trained_size_leaves_held_kernels_and_what_they_compute():
    """A continuous kernel is re-sampled for good: dt changes, and rate 1 is the new grid. A held one goes on being held."""
    layer = make(2, 6)
    before, outputs = copy.deepcopy(layer.state_dict()), [layer(signal(n, n)) for n in (6, 12)]
    set_base_size(layer, 12, rescale=True)
    assert layer.base_size == (6, 6)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(torch.equal(layer(signal(n, n)), y) for n, y in zip((6, 12), outputs, strict=True))
    other = make(2, 6, resample="continuous")
    y = other(signal(12, 12))
    set_base_size(other, 12, rescale=True)
    assert other.base_size == (12, 12)
    assert_close(other(signal(12, 12)), y)


def test_way_is_a_setting_that_kept_kernels_follow():
    layer = make(resample="continuous").eval()
    u = signal(12, 12)
    with torch.no_grad(), frozen(layer):
        first = layer(u)
        set_resample(layer, "hold")
        assert_close(layer(u), make().eval()(u))
        set_resample(layer, "continuous")
        assert_close(layer(u), first)


def test_first_layer_that_sees_the_image_holds_and_those_after_it_dilate():
    model = timm.create_model("s4nd_iso_tiny", img_size=8, resample="hold+dilate")
    methods = [block.mixer.s4nd.resample for block in model.blocks]
    assert methods == [("hold", "hold")] + [("dilate", "dilate")] * 3
    set_resample(model, ["hold+dilate", "continuous"])
    methods = [block.mixer.s4nd.resample for block in model.blocks]
    assert methods == [("hold", "continuous")] + [("dilate", "continuous")] * 3


def test_model_without_layers_of_the_kind_is_refused_and_a_refused_way_changes_nothing():
    with pytest.raises(ValueError, match="resample='hold' needs S4ND layers, or convolutions after"):
        set_resample(nn.Conv2d(3, 3, 3), "hold")
    with pytest.raises(ValueError, match="needs S4ND layers"):
        timm.create_model("conv_iso_tiny", resample="hold")
    model = nn.ModuleList([make(kernel="s4d"), make(kernel="s4")])
    with pytest.raises(ValueError, match="use 'hold'"):
        set_resample(model, "fold")
    assert [layer.resample for layer in model] == [("hold", "hold")] * 2


@pytest.mark.parametrize("method", ["fold it", None, ("hold",), ("hold", "other")])
def test_unknown_way_is_refused(method):
    with pytest.raises(ValueError, match="resample must be one"):
        make(resample=method)


@pytest.mark.parametrize(
    "name, args, size",
    [
        ("s4nd_iso_tiny", dict(img_size=8), 8),
        ("s4nd_vit_tiny_patch16_224", dict(img_size=64, mixer_ndim=2, depth=2), 64),
        ("s4nd_convnext_micro", dict(img_size=64, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)), 64),
    ],
)
@pytest.mark.parametrize("method", ["hold", "hold+dilate"])
def test_models_take_it_as_an_argument_and_carry_it_with_their_weights(name, args, size, method):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, resample=method, **args).eval()
    other = timm.create_model(name, num_classes=3, **args).eval()
    other.load_state_dict(model.state_dict())
    set_resample(continuous := copy.deepcopy(model), "continuous")
    with torch.no_grad():
        for n in (size, 2 * size):
            x = torch.randn(1, 3, n, n)
            assert torch.equal(model(x), other(x))
            assert torch.equal(model(x), continuous(x)) == (n == size)


@pytest.mark.parametrize("method", REGRID)
def test_program_for_all_sizes_holds_too(method):
    layer = make(2, 6, l_max=3, dtype=torch.float32, resample=method).eval()
    u = torch.randn(1, 3, 9, 10)
    sizes = {2: torch.export.Dim("h", min=4, max=32), 3: torch.export.Dim("w", min=4, max=32)}
    program = torch.export.export(layer, (u,), dynamic_shapes=(sizes,)).module()
    for size in ((9, 10), (6, 6), (12, 7), (5, 24)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(program(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", REGRID)
def test_compiled_layer_holds_too(method):
    layer = make(2, 6, dtype=torch.float32, resample=method)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for n in (6, 9, 12):
        u = torch.randn(2, 3, n, n)
        torch.testing.assert_close(compiled(u), layer(u), rtol=1e-4, atol=1e-5)
