"""Video ConvNeXts against the paper's parameter counts, the reference's logits, and what they promise about time and size."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from s4nd import S4ND
from s4nd.models.convnext3d import ConvNeXt3d, FactoredConv3d
from s4nd.models.reference_weights import convert_reference, unused_keys
from s4nd.models.s4nd_convnext3d import S4NDConvNeXt3d
from tests.reference import video_state

F64 = torch.float64
SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5, ls_init_value=1.0)
COUNTS = {
    "s4nd_convnext3d_tiny": 31_381_587,
    "convnext_i3d_tiny": 28_513_107,
    "convnext_s3d_tiny": 27_859_406,
}
NAMES = [
    name for kind in ("s4nd_convnext3d", "convnext_i3d", "convnext_s3d") for name in (f"{kind}_micro", f"{kind}_tiny")
]
GOLDEN = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=10)
REFERENCE = {
    "convnext3d_s4nd_patch": lambda: S4NDConvNeXt3d(
        img_size=64, num_frames=4, d_state=8, init="fout", n_ssm=1, align="edge", **GOLDEN
    ),
    "convnext3d_i3d": lambda: ConvNeXt3d(**GOLDEN),
    "convnext3d_s3d": lambda: ConvNeXt3d(FactoredConv3d, **GOLDEN),
}


def small(name, **args):
    torch.manual_seed(0)
    own = dict(SMALL, **(dict(img_size=64, num_frames=8, d_state=4) if name.startswith("s4nd") else {}))
    return timm.create_model(name, **{**own, **args}).to(F64).eval()


def clip(frames, *size, batch=1, seed=1):
    return torch.randn(batch, 3, frames, *size, dtype=F64, generator=torch.Generator().manual_seed(seed))


def layers(model):
    return [m for m in model.modules() if isinstance(m, S4ND)]


def assert_close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_papers(name):
    model = timm.create_model(name, num_classes=51, device="meta")
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", REFERENCE)
def test_converted_model_gives_the_references_logits(shared, name):
    with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
        state = {k.removeprefix("state/"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("state/")}
        x, logits = (torch.from_numpy(arrays[key]).to(F64) for key in ("input", "logits"))
    model = REFERENCE[name]().to(F64).eval()
    model.load_state_dict(convert_reference(state, model))
    assert_close(model(x), logits, 1e-6)


@pytest.mark.parametrize("time", [dict(), dict(init="fout", n_ssm=1)], ids=["half legs", "fout"])
@pytest.mark.parametrize("downsample", ["conv", "s4nd"])
def test_network_with_an_s4nd_stem_is_converted(downsample, time):
    """From the reference's names of a network here; it has a D in its dense stem that it does not use."""

    def build(seed):
        torch.manual_seed(seed)
        args = dict(img_size=32, num_frames=4, d_state=8, align="edge", stem="s4nd", stem_channels=8, ls_init_value=1.0)
        return S4NDConvNeXt3d(**args, downsample=downsample, **time, **GOLDEN).to(F64).eval()

    source, model, x = build(0), build(1), clip(4, 32, 32)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # nothing is at its initial 0 or 1
    state = video_state(source) | {"stem.stem.0.D": torch.randn(1, 3)}
    assert {"stem.stem.0.kernel.2.C", "stem.stem.2.weight", "stem.stem.4.bias"} <= state.keys()
    model.load_state_dict(convert_reference(state, model))
    assert torch.equal(model(x), source(x))
    assert unused_keys(state, model) == ["stem.stem.0.D"]
    with pytest.raises(ValueError, match=r"2 missing: stem\.3\.weight, stem\.3\.bias"):
        convert_reference({key: value for key, value in state.items() if ".4." not in key}, model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 64, 64), (5, 32, 96), (2, 101, 70)])
def test_any_clip_gives_logits_and_every_parameter_a_gradient(name, size):
    model = small(name)
    logits = model(clip(*size, batch=2))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_features_keep_time_and_halve_space(name):
    x = clip(6, 64, 96)
    features = timm.create_model(name, features_only=True, **SMALL).to(F64)(x)
    grids = [(3, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert [tuple(f.shape) for f in features] == [(1, c, *g) for c, g in zip(SMALL["dims"], grids, strict=True)]
    model = small(name)
    final, intermediates = model.forward_intermediates(x)
    assert_close(intermediates[-1], final)
    assert_close(model.forward_head(model.forward_features(x)), model(x))
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (1, 16)


@pytest.mark.parametrize("name", NAMES)
def test_norm_before_the_pooling_is_that_of_every_sample(name):
    model, x = small(name, head_norm_first=True), clip(4, 64, 64)
    features = nn.Sequential(model.stem, model.stages)(x)
    mean, var = features.mean(1, keepdim=True), features.var(1, keepdim=True, unbiased=False)
    normed = (features - mean) / (var + model.norm_pre.eps).sqrt()  # its weight is 1, its bias 0
    assert_close(model.forward_features(x), normed)
    assert_close(model(x), model.head.fc(normed.mean((2, 3, 4))))


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_gradients_are_the_same(name):
    x, gradients = clip(4, 64, 64), []
    for checkpointing in (False, True):
        model = small(name)
        model.set_grad_checkpointing(checkpointing)
        model.train()
        for module in model.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        model.head.drop.p = 0.0
        model(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    "variant, resample, rate",
    [("tiny", "continuous", 1.0), ("micro", "continuous", 1.0), ("micro", "hold+dilate", 0.5)],
)
def test_new_input_size_keeps_the_function_at_that_size(variant, resample, rate):
    """Continuous kernels are then those of the new grid; held and dilated ones are still made from the one of before."""
    model, x = small(f"s4nd_convnext3d_{variant}", resample=resample), clip(16, 96, 64)
    expected = model(x)
    assert {layer.rate(0, 8) for layer in layers(model) if layer.pool[0] == 1} == {0.5}
    model.set_input_size((96, 64), num_frames=16)
    assert (model.img_size, model.num_frames) == ((96, 64), 16)
    assert {layer.rate(0, 8) for layer in layers(model) if layer.pool[0] == 1} == {rate}
    assert_close(model(x), expected)
    with pytest.raises(ValueError, match="num_frames must be at least 2, got 1"):
        model.set_input_size(64, num_frames=1)
    assert (model.img_size, model.num_frames) == ((96, 64), 16)


@pytest.mark.parametrize("variant", ["tiny", "micro"])
def test_without_a_number_of_frames_time_extends(variant):
    """A causal model's features of the first frames are those of the shorter clip; re-sampled time changes them."""
    x, name = clip(12, 64, 64), f"s4nd_convnext3d_{variant}"
    for frames, extends in ((0, True), (6, False)):
        model = small(name, causal=True, num_frames=frames)
        assert model.num_frames == (frames or None)
        long, short = model.forward_features(x)[:, :, :3], model.forward_features(x[:, :, :6])
        assert ((long - short).abs().max() < 1e-10 * short.abs().max()) == extends


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("variant", ["tiny", "micro"])
def test_only_a_causal_models_features_depend_on_no_later_frame(variant, causal):
    model, x = small(f"s4nd_convnext3d_{variant}", causal=causal), clip(8, 64, 64).requires_grad_()
    for t, features in enumerate(model.forward_features(x).unbind(2)):
        (gradient,) = torch.autograd.grad(features.square().sum(), x, retain_graph=True)
        seen = gradient.abs().amax((0, 1, 3, 4)) > 0
        assert seen[: 2 * t + 2].any()
        assert seen[2 * t + 2 :].any() == (not causal and t < 3)


def test_temporal_initialisation_is_the_papers():
    model = timm.create_model("s4nd_convnext3d_tiny", **dict(SMALL, d_state=8), temporal_length=4.0)
    for layer in layers(model):
        time, *space = layer.kernels
        assert (time.init, time.n_ssm, time.deterministic) == ("hippo", layer.d_model, True)
        assert torch.equal(time.dt(), torch.full_like(time.dt(), 0.5))
        assert all((k.init, k.n_ssm, k.dt_min, k.dt_max) == ("fout", 1, 0.1, 1.0) for k in space)
    for module in small("s4nd_convnext3d_micro").modules():
        assert not isinstance(module, nn.Conv3d) or module.kernel_size == (1, 1, 1)


@pytest.mark.parametrize("variant", ["tiny", "micro"])
@pytest.mark.parametrize("kernel", ["s4d", "lru"])
def test_another_kernel_begins_with_its_own_defaults(variant, kernel):
    model = small(f"s4nd_convnext3d_{variant}", kernel=kernel)
    assert {k.init for layer in layers(model) for k in layer.kernels} == {{"s4d": "lin", "lru": "ring"}[kernel]}
    assert model(clip(4, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (dict(stem="conv"), ValueError, "got 'conv' and 'conv'"),
        (dict(temporal_length=0.0), ValueError, "temporal_length must be positive, got 0.0"),
        (dict(img_size=31), ValueError, r"img_size must be at least 32 for 4 stages, got \(31, 31\)"),
        (dict(num_frames=1), ValueError, "num_frames must be at least 2, got 1"),
        (dict(conv_mlp=True), TypeError, "does not take conv_mlp"),
        (dict(norm_layer="rmsnorm"), ValueError, "needs norm_layer='layernorm', got timm's RmsNorm2d"),
        (dict(nonsense=1), TypeError, "nonsense"),
    ],
)
def test_wrong_options_are_refused(args, error, message):
    with pytest.raises(error, match=message):
        small("s4nd_convnext3d_tiny", **args)


def test_kernels_name_the_parameters_without_weight_decay():
    names = small("s4nd_convnext3d_tiny").no_weight_decay()
    assert "stages.0.blocks.0.conv_dw.kernels.0.log_dt" in names
