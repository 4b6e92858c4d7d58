"""S4ND-ConvNeXt: the paper's parameter counts, the grids of its layers, its options."""

import pytest
import timm
import torch
from timm.models import get_model_input_config
from torch import nn

import s4nd.models  # noqa: F401
from s4nd import S4ND

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), d_state=4, num_classes=5, ls_init_value=1.0)
COUNTS = {
    ("s4nd_convnext_tiny", 1000): 29_980_456,
    ("s4nd_convnext_micro", 40): 9_644_209 - 3,  # the reference counts the D of the dense stem, which it does not use
    ("convnext_micro", 40): 9_237_608,
}


def small(variant="tiny", **args):
    torch.manual_seed(0)
    return timm.create_model(f"s4nd_convnext_{variant}", **{"img_size": 64, **SMALL, **args})


def layers(model):
    return [m for m in model.modules() if isinstance(m, S4ND)]


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_parameter_counts_are_the_papers(name, classes):
    model = timm.create_model(name, num_classes=classes, device="meta")
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name, classes]


@pytest.mark.parametrize("options", [dict(stem="patch"), dict(stem="s4nd"), dict(downsample="s4nd")])
def test_every_layer_is_at_rate_one_at_the_trained_size_and_at_half_of_it_at_twice_the_size(options):
    model, met = small(**options), []
    for layer in layers(model):
        layer.register_forward_hook(
            lambda layer, x, _: met.append([layer.rate(i, n) for i, n in enumerate(x[0].shape[2:])])
        )
    model(torch.randn(1, 3, 64, 64))
    assert met == [[1.0, 1.0]] * (4 + (options.get("stem") == "s4nd") + 3 * ("downsample" in options))
    met.clear()
    model(torch.randn(1, 3, 128, 64))
    assert all(rates == [0.5, 1.0] for rates in met)


def test_initialisation_and_ranges_are_the_papers():
    model = timm.create_model("s4nd_convnext_micro")
    for layer in layers(model):
        assert (layer.d_state, layer.rank, layer.channels, layer.bidirectional) == (64, 1, 1, (True, True))
        for kernel in layer.kernels:
            assert (kernel.name, kernel.init, kernel.n_ssm) == ("s4", "fout", 1)
            assert kernel.dt().min() >= 0.1
            assert kernel.dt().max() <= 1.0
    assert layers(model)[0].l_max == (16, 16)
    assert {b.gamma.detach().unique().item() for s in model.stages for b in s.blocks} == {torch.tensor(1e-6).item()}
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert all(m.eps == 1e-6 for m in model.modules() if isinstance(m, nn.LayerNorm))


def test_pooling_after_an_s4nd_stem_and_downsampling_is_the_layers_own():
    model = small("micro")
    assert model.stem[0].pool == (4, 4)
    assert [stage.downsample[1].pool for stage in model.stages[1:]] == [(2, 2)] * 3


@pytest.mark.parametrize("variant", ["tiny", "micro"])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_is_a_finer_grid_of_the_same_signal(variant, stride):
    """timm dilates convolutions there; a continuous kernel is read at a smaller step instead, and nothing else changes."""
    model = small(variant, output_stride=stride).eval()
    features = model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    assert [f.shape[-1] for f in features] == [max(64 // stride, 64 // s) for s in (4, 8, 16, 32)]
    assert [info["reduction"] for info in model.feature_info] == [min(stride, s) for s in (4, 8, 16, 32)]
    block = model.stages[3].blocks[0].conv_dw
    assert block.base_size == (2, 2)
    assert block.rate(0, 64 // stride) == stride / 32


def test_options_reach_every_layer():
    model = small(kernel="s4d", init="lin", rank=2, bandlimit=0.5, align="edge")
    assert all((layer.rank, layer.bandlimit, layer.align) == (2, 0.5, "edge") for layer in layers(model))
    assert all(kernel.name == "s4d" for layer in layers(model) for kernel in layer.kernels)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="got 'conv' and 'conv'"):
        small(stem="conv")
    with pytest.raises(TypeError, match="there is no kernel_sizes"):
        small(kernel_sizes=7)
    with pytest.raises(ValueError, match="replaces the patch stem, got stem_type='overlap'"):
        small("micro", stem_type="overlap")
    with pytest.raises(ValueError, match=r"img_size must be at least 32 for 4 stages, got \(31, 64\)"):
        small(img_size=(31, 64))
    with pytest.raises(TypeError, match="nonsense"):
        small(nonsense=1)


def test_a_size_that_is_too_small_leaves_the_model_as_it_was():
    model, x = small().eval(), torch.randn(1, 3, 64, 64)
    expected = model(x)
    with pytest.raises(ValueError, match="img_size must be at least 32"):
        model.set_input_size(16)
    assert model.img_size == (64, 64)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("variant", "stem", "first_conv"), [("micro", "patch", "stem.0"), ("tiny", "s4nd", ())])
def test_the_convolution_that_timm_adapts_to_other_channels_is_that_of_the_stem_in_use(variant, stem, first_conv):
    assert get_model_input_config(small(variant, stem=stem))["first_conv"] == first_conv
