"""Every model that s4nd.models registers against timm's model protocol, in small."""

import copy

import pytest
import timm
import torch
from timm.models import get_model_input_config, group_parameters, model_entrypoint
from timm.optim import param_groups_layer_decay

import s4nd.models

F64 = torch.float64
NAMES = [n for n in timm.list_models() if model_entrypoint(n).__module__.startswith(s4nd.models.__name__)]
# Every family in small: its arguments, and three sizes of images or clips, of which the first is the trained one.
SMALL = {
    "iso": (dict(img_size=8, embed_dim=8, depth=3), [(8, 8), (7, 12), (5, 1)]),
    "seq": (dict(img_size=8, embed_dim=8, depth=3), [(8, 8), (7, 12), (5, 1)]),
    "convnext": (dict(depths=(1, 2, 1, 1), dims=(8, 8, 16, 16), ls_init_value=1.0), [(64, 64), (32, 96), (101, 70)]),
    "3d": (dict(depths=(1, 2, 1, 1), dims=(8, 8, 16, 16), ls_init_value=1.0), [(8, 32, 32), (6, 32, 64), (5, 70, 40)]),
    "vit": (dict(img_size=32, patch_size=8, embed_dim=8, depth=3, num_heads=2), [(32, 32), (16, 48), (41, 30)]),
}
S4ND_ARGS = dict(d_state=4)

pytestmark = pytest.mark.parametrize("name", NAMES)


def family(name):
    return "3d" if "3d" in name else next(f for f in SMALL if f in name)


def has_stages(name):
    return family(name) in ("convnext", "3d")


def is_isotropic(name):
    return family(name) in ("iso", "seq")


def sizes(name):
    return SMALL[family(name)][1]


def arguments(name):
    own = dict(SMALL[family(name)][0])
    if name.startswith("s4nd"):
        own |= S4ND_ARGS
    if name.startswith("s4nd_convnext"):
        own["img_size"] = sizes(name)[0][-2:]
    if name.startswith("s4nd_convnext3d"):
        own["num_frames"] = sizes(name)[0][0]
    return own


def small(name, **args):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **arguments(name), **args})


def knows_its_size(name):
    """All but the ConvNeXts of convolutions, which are fully convolutional."""
    return name.startswith("s4nd") or is_isotropic(name)


def images(*size, channels=3, dtype=torch.float32):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def assert_close(actual, expected, scale=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_size_gives_logits_and_every_parameter_a_gradient(name, number):
    model = small(name, drop_path_rate=0.1, drop_rate=0.1).eval()
    logits = model(images(*sizes(name)[number]))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_default_cfg_names_modules_that_exist(name):
    cfg, model = timm.get_pretrained_cfg(name), small(name)
    assert cfg.input_size == (3, 32, 32) if is_isotropic(name) else (3, 224, 224)
    assert len(cfg.mean) == len(cfg.std) == 3
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    first_conv = (cfg.first_conv,) if isinstance(cfg.first_conv, str) else cfg.first_conv
    assert isinstance(first_conv, tuple | list)  # this and the next line are timm's own test
    assert all(f"{conv}.weight" in model.state_dict() for conv in first_conv)
    assert all(model.get_submodule(conv).in_channels == 3 for conv in first_conv)
    assert len(first_conv) == (not has_s4nd_stem(model))


def has_s4nd_stem(model):
    return hasattr(model, "stages") and isinstance(model.stem[0], s4nd.S4ND)


def test_pretrained_without_weights_is_refused_by_timm(name):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(name, pretrained=True)


def test_forward_is_the_head_of_the_features(name):
    model, x = small(name).eval(), images(*sizes(name)[0])
    features = model.forward_features(x)
    last = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
    assert features.shape == (last.flatten(2).mT.shape if family(name) == "vit" else last.shape)
    assert last.shape[1] == model.num_features
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(x))


def test_reset_classifier_changes_classes_and_pooling(name):
    model, x = small(name).eval(), images(*sizes(name)[0])
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(7, "max")
    assert model(x).shape == (2, 7)
    assert not torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), before)
    model.reset_classifier(0, "avg")
    assert model.num_classes == 0
    assert torch.equal(model(x), before)


def test_features_only_equals_forward_intermediates(name):
    *frames, height, width = sizes(name)[1]
    x = images(*frames, height, width)
    features = small(name, features_only=True, out_indices=(0, -2)).eval()
    whole = small(name).eval()
    expected = whole.forward_intermediates(x, indices=[0, len(whole.feature_info) - 2], intermediates_only=True)
    found = features(x)
    assert len(found) == len(expected) == 2
    for f, e, channels, stride in zip(
        found, expected, features.feature_info.channels(), features.feature_info.reduction(), strict=True
    ):
        assert f.shape == (2, channels, *(n // 2 for n in frames), height // stride, width // stride)
        assert torch.equal(f, e)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    last = whole.stages[-1] if has_stages(name) else whole.blocks[-1]
    assert count(features) <= count(whole) - count(last)  # what no chosen feature needs is gone


def test_forward_intermediates_keeps_timms_meaning_of_its_arguments(name):
    model, x = small(name).eval(), images(*sizes(name)[0])
    final, everything = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(everything) == len(model.feature_info)
    _, last_two = model.forward_intermediates(x, indices=2)
    assert all(torch.equal(a, b) for a, b in zip(last_two, everything[-2:], strict=True))
    normed = model.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)
    assert torch.equal(normed[0].flatten(2).mT if family(name) == "vit" else normed[0], final)
    with pytest.raises((ValueError, AssertionError), match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_stop_early_runs_no_further_block(name):
    model, x = small(name).eval(), images(*sizes(name)[0])
    expected = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    second = model.stages[1] if has_stages(name) else model.blocks[1]
    second.register_forward_hook(lambda *_: pytest.fail("it ran"))
    found = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(found[0], expected[0])


def test_gradient_checkpointing_changes_no_gradient(name):
    plain = small(name, drop_rate=0.0, drop_path_rate=0.0, **({"proj_drop_rate": 0.0} if is_isotropic(name) else {}))
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = images(*sizes(name)[0])
    for model in (plain, saving):
        model(x).square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    final, kept = saving.forward_intermediates(x)
    assert torch.equal(final, plain.forward_features(x))
    assert len(kept) == len(plain.feature_info)


def test_group_matcher_takes_every_parameter_once(name):
    model = small(name)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(n for group in groups.values() for n in group) == sorted(n for n, _ in model.named_parameters())
    blocks = sum(type(m).__name__.endswith("Block") for m in model.modules())
    assert len(groups) == blocks + 2  # stem, blocks, norm and head


def test_no_weight_decay_is_what_its_modules_say(name):
    model = small(name)
    if not hasattr(model, "no_weight_decay"):
        pytest.skip("timm's own ConvNeXt has no such method, and these no S4ND layers")
    own = (
        {"pos_embed", "cls_token", "reg_token", "dist_token"} if family(name) == "vit" else set()
    )  # timm's, absent here
    assert model.no_weight_decay() - own == s4nd.no_weight_decay(model)
    assert bool(s4nd.no_weight_decay(model)) == name.startswith("s4nd")
    assert model.no_weight_decay() == copy.deepcopy(model).no_weight_decay()


def test_layer_decay_gives_deeper_blocks_a_larger_rate_and_keeps_what_modules_say(name):
    model = small(name)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=s4nd.no_weight_decay(model)
    )
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert set(scale) == {id(p) for p in model.parameters()}
    first = next(iter(model.parameters()))
    assert scale[id(first)] < scale[id(model.get_classifier().weight)] == 1
    assert all(decay[id(p)] == 0 for n, p in model.named_parameters() if n in s4nd.no_weight_decay(model))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_set_input_size_keeps_the_function_at_that_size(name, number):
    """Kernels that are continuous are those of the new grid, others stay those of the old one."""
    if not knows_its_size(name):
        pytest.skip("a fully convolutional network knows no size")
    size = sizes(name)[number]
    if family(name) == "vit":
        size = tuple(n // 8 * 8 for n in size)  # timm's patch embedding wants whole patches there
    model = small(name).eval().to(F64)
    x = images(*size, dtype=F64)
    expected = model(x)
    more = {"num_frames": size[0]} if family(name) == "3d" else {}
    size = size[-2:]
    before = [layer.base_size for layer, _ in grids(model, x)]
    model.set_input_size(size, **more)
    assert_close(model(x), expected, 1e-10)
    for (layer, n), base in zip(grids(model, x), before, strict=True):
        assert layer.rate(0, n) == 1 if layer.resample[0] == "continuous" else layer.base_size == base
    assert get_model_input_config(model)["input_size"] == (3, *size)


def grids(model, x):
    """Every S4ND layer with the first axis of the grid that it meets."""
    met = []
    for layer in model.modules():
        if isinstance(layer, s4nd.S4ND):
            layer.register_forward_hook(lambda layer, inputs, _: met.append((layer, inputs[0].shape[2])))
    model(x)
    return met


def test_img_size_is_the_models_input_size(name):
    if not knows_its_size(name):
        pytest.skip("a fully convolutional network knows no size")
    height, width = sizes(name)[1][-2:]
    assert get_model_input_config(small(name, img_size=(height, width)))["input_size"] == (3, height, width)


def test_copies_and_reloaded_states_compute_the_same(name):
    model, x = small(name).eval(), images(*sizes(name)[0])
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch.manual_seed(1)
    other = copy.deepcopy(model)
    for p in other.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


def test_in_chans_is_respected(name):
    size = sizes(name)[0]
    assert small(name, in_chans=1)(images(*size, channels=1)).shape == (2, 5)


def test_bf16_autocast_errs_by_roundings_only(name):
    model, x = small(name).eval(), images(*sizes(name)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    depth = sum(type(m).__name__.endswith("Block") for m in model.modules())
    roundings = 8 * (depth + 2)  # about eight operations with a rounding to 2^-9 in a block, in stem and in head
    assert_close(logits.float(), model(x), roundings * 2.0**-9)


def test_model_in_half_precision_takes_images_of_the_dtype_of_its_first_parameter(name):
    """By which transformers asks a model for its dtype, and timm for that of a new classifier."""
    model = small(name).eval().bfloat16()
    for classes in (0, 5):
        model.reset_classifier(classes)
    assert {p.dtype for p in model.get_classifier().parameters()} == {torch.bfloat16}
    logits = model(images(*sizes(name)[0]).to(next(model.parameters()).dtype))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@pytest.mark.parametrize("own, given", [(torch.float32, F64), (F64, torch.float32)])
def test_images_in_another_precision_are_refused_otherwise(name, own, given):
    with pytest.raises(RuntimeError, match="type"):
        small(name).eval().to(own)(images(*sizes(name)[0], dtype=given))


def test_channels_last_computes_the_same(name):
    model, x = small(name).eval().to(F64), images(*sizes(name)[1], dtype=F64)
    expected = model(x)
    if family(name) == "3d":  # torch cannot convert a model that has weights of four axes too
        assert_close(model(x.to(memory_format=torch.channels_last_3d)), expected)
    else:
        assert_close(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), expected)


def test_dtype_argument_reaches_every_parameter(name):
    assert {p.dtype for p in small(name, dtype=F64).parameters()} == {F64}
