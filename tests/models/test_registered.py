"""Every model that s4nd.models registers against timm's model protocol, in small."""

import copy

import pytest
import timm
import torch
from timm.models import get_model_input_config, group_parameters, model_entrypoint

import s4nd.models

F64 = torch.float64
NAMES = [n for n in timm.list_models() if model_entrypoint(n).__module__.startswith(s4nd.models.__name__)]
DEPTH = 3
SMALL = dict(img_size=8, embed_dim=8, depth=DEPTH, num_classes=5)

pytestmark = pytest.mark.parametrize("name", NAMES)


def small(name, **args):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **args})


def images(*size, channels=3, dtype=torch.float32):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def assert_close(actual, expected, scale=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (5, 1)])
def test_any_size_gives_logits_and_every_parameter_a_gradient(name, size):
    model = small(name, drop_path_rate=0.1, drop_rate=0.1).eval()
    logits = model(images(*size))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_default_cfg_names_modules_that_exist(name):
    cfg, model = timm.get_pretrained_cfg(name), small(name)
    assert cfg.input_size == (3, 32, 32)
    assert len(cfg.mean) == len(cfg.std) == 3
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    assert model.get_submodule(cfg.first_conv).in_channels == 3


def test_pretrained_without_weights_is_refused_by_timm(name):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(name, pretrained=True)


def test_forward_is_the_head_of_the_features(name):
    model, x = small(name).eval(), images(8, 8)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 8, 8)
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(x))


def test_reset_classifier_changes_classes_and_pooling(name):
    model, x = small(name).eval(), images(8, 8)
    model.reset_classifier(7, "max")
    assert model(x).shape == (2, 7)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
    model.reset_classifier(0, "")
    assert model.num_classes == 0
    assert torch.equal(model(x), model.forward_features(x))


def test_features_only_equals_forward_intermediates(name):
    x = images(6, 9)
    features = small(name, features_only=True, out_indices=(0, -2)).eval()
    expected = small(name).eval().forward_intermediates(x, indices=[0, DEPTH - 2], intermediates_only=True)
    found = features(x)
    assert len(found) == len(expected) == 2
    for f, e, channels, stride in zip(
        found, expected, features.feature_info.channels(), features.feature_info.reduction(), strict=True
    ):
        assert f.shape == (2, channels, 6 // stride, 9 // stride)
        assert torch.equal(f, e)
    assert len(features.model.blocks) == DEPTH - 1  # what no chosen feature needs is gone


def test_forward_intermediates_keeps_timms_meaning_of_its_arguments(name):
    model, x = small(name).eval(), images(8, 8)
    final, everything = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(everything) == DEPTH
    _, last_two = model.forward_intermediates(x, indices=2)
    assert all(torch.equal(a, b) for a, b in zip(last_two, everything[-2:], strict=True))
    normed = model.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)
    assert torch.equal(normed[0], final)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_stop_early_runs_no_further_block(name):
    model, x = small(name).eval(), images(8, 8)
    expected = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    model.blocks[1].register_forward_hook(lambda *_: pytest.fail("block 1 ran"))
    found = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(found[0], expected[0])


def test_gradient_checkpointing_changes_no_gradient(name):
    plain = small(name, proj_drop_rate=0.0)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = images(8, 8)
    for model in (plain, saving):
        model(x).square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    final, kept = saving.forward_intermediates(x)
    assert torch.equal(final, plain.forward_features(x))
    assert len(kept) == DEPTH


def test_group_matcher_takes_every_parameter_once(name):
    model = small(name)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(n for group in groups.values() for n in group) == sorted(n for n, _ in model.named_parameters())
    assert len(groups) == DEPTH + 2  # stem, blocks, norm and head


def test_no_weight_decay_is_what_the_tags_say(name):
    model = small(name)
    assert model.no_weight_decay() == s4nd.no_weight_decay(model)
    assert bool(model.no_weight_decay()) == name.startswith("s4nd")
    assert model.no_weight_decay() == copy.deepcopy(model).no_weight_decay()


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (5, 12)])
def test_set_input_size_keeps_the_function_at_that_size(name, size):
    model = small(name).eval().to(F64)
    x = images(*size, dtype=F64)
    expected = model(x)
    model.set_input_size(size)
    assert_close(model(x), expected, 1e-10)
    assert model.img_size == size
    assert get_model_input_config(model)["input_size"] == (3, *size)


def test_img_size_is_the_models_input_size(name):
    assert get_model_input_config(small(name, img_size=(8, 12)))["input_size"] == (3, 8, 12)


def test_copies_and_reloaded_states_compute_the_same(name):
    model, x = small(name).eval(), images(8, 8)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    other = timm.create_model(name, **SMALL).eval()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


def test_in_chans_is_respected_and_a_wrong_input_names_both_shapes(name):
    model = small(name, in_chans=1)
    assert model(images(8, 8, channels=1)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"x must be \(B, 1, height, width\), got \(2, 3, 8, 8\)"):
        model(images(8, 8))
    with pytest.raises(ValueError, match=r"x must be \(B, 1, height, width\), got \(2, 1, 8\)"):
        model(images(8, channels=1))


def test_bf16_autocast_errs_by_roundings_only(name):
    model, x = small(name).eval(), images(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    roundings = 8 * (DEPTH + 2)  # about eight operations with a rounding to 2^-9 in a block, in stem and in head
    assert_close(logits.float(), model(x), roundings * 2.0**-9)


def test_channels_last_computes_the_same(name):
    model, x = small(name).eval().to(F64), images(8, 9, dtype=F64)
    expected = model(x)
    assert_close(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), expected)


def test_dtype_argument_reaches_every_parameter(name):
    assert {p.dtype for p in small(name, dtype=F64).parameters()} == {F64}


def test_drop_path_grows_linearly_to_the_last_block(name):
    blocks = small(name, drop_path_rate=0.4).blocks
    assert isinstance(blocks[0].drop_path, torch.nn.Identity)
    assert [round(b.drop_path.drop_prob, 6) for b in blocks[1:]] == [0.2, 0.4]


def test_dropout_falls_on_whole_channels(name):
    model = small(name, proj_drop_rate=0.5).train()
    block = model.blocks[0]
    x = images(6, 6, channels=8)
    dropped = (block(x) == x).flatten(2)  # where the residual branch is zero
    assert 0 < dropped.all(-1).sum() < dropped[..., 0].numel()
    assert torch.equal(dropped.all(-1), dropped.any(-1))
