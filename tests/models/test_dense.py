"""Isotropic models without pooling: an answer for each pixel, against the pooled head with the same numbers."""

import copy
import io

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import s4nd.models  # noqa: F401  registers the models
from s4nd import S4ND

NAMES = ["s4nd_iso_tiny", "conv_iso_tiny", "s4nd_seq_tiny"]
SIZE, OTHER = (8, 8), (7, 12)

pytestmark = pytest.mark.parametrize("name", NAMES)


def small(name, **args):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=8, embed_dim=8, depth=2, **{"num_classes": 3, **args}).eval()


def dense(name, **args):
    return small(name, global_pool="", **args)


def images(size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, scale=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@pytest.mark.parametrize("size", [SIZE, OTHER, (5, 1)])
def test_output_is_the_linear_of_the_features_at_each_pixel(name, size):
    model, x = dense(name), images(size)
    fc, features = model.get_classifier(), model.forward_features(x)
    expected = torch.einsum("bhyx,kh->bkyx", features, fc.weight[:, :, 0, 0]) + fc.bias[:, None, None]
    assert model(x).shape == (2, 3, *size)
    assert_close(model(x), expected)
    assert torch.equal(model.forward_head(features, pre_logits=True), features)


def test_its_mean_is_what_the_pooled_model_answers(name):
    """The mean is linear too, so both orders agree; the weights are the same numbers in other shapes."""
    model, pooled, x = dense(name), small(name), images(OTHER)
    weight = model.head.fc.weight.flatten(1)
    pooled.load_state_dict({**model.state_dict(), "head.fc.weight": weight})
    assert_close(model(x).mean((2, 3)), pooled(x))


def test_pooling_comes_and_goes_with_the_classifier(name):
    model, x = small(name), images(OTHER)
    for pool, kind, shape in (("", nn.Conv2d, (2, 5, *OTHER)), ("avg", nn.Linear, (2, 5)), ("max", nn.Linear, (2, 5))):
        model.reset_classifier(5, pool)
        assert isinstance(model.get_classifier(), kind) and model(x).shape == shape
        model.reset_classifier(5)  # the pooling stays
        assert isinstance(model.get_classifier(), kind) and model(x).shape == shape
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    model.reset_classifier(2)
    assert model(x).shape == (2, 2, *OTHER)


def test_pruned_model_gets_a_dense_head_or_a_pooled_one(name):
    model, x = small(name), images(SIZE)
    model.prune_intermediate_layers([0])
    model.reset_classifier(4)
    assert model(x).shape == (2, 4, *SIZE)
    model.reset_classifier(4, "avg")
    assert model(x).shape == (2, 4)


def test_state_goes_to_a_copy_and_another_size(name):
    model, x = dense(name), images(OTHER)
    other = dense(name)
    nn.init.normal_(other.head.fc.weight)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
    if name != "s4nd_seq_tiny":  # of which a change of the height is another sequence
        expected = model(x)
        model.set_input_size(OTHER)
        assert_close(model(x), expected)


def test_pooled_weights_are_refused_by_name(name):
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.fc\.weight"):
        dense(name).load_state_dict(small(name).state_dict())


def test_features_do_not_depend_on_the_head(name):
    features = timm.create_model(
        name, img_size=8, embed_dim=8, depth=2, global_pool="", features_only=True, out_indices=(0, 1)
    )
    x = images(OTHER)
    assert [f.shape for f in features(x)] == [(2, 8, *OTHER)] * 2


@torch.no_grad()
def fused(model, x):
    model(x)
    return reparameterize_model(model)


def test_fused_model_gives_the_same_and_is_exported(name):
    model, x, v = dense(name), images(OTHER), images(OTHER, batch=3)
    plain = fused(model, x)
    assert not [m for m in plain.modules() if isinstance(m, S4ND)]
    assert_close(plain(v), model(v))
    exported, batch = io.BytesIO(), ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(plain, (x,), dynamic_shapes=batch), exported)
    exported.seek(0)
    assert_close(torch.export.load(exported).module()(v), model(v))


@pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):DeprecationWarning")
def test_fused_model_is_scripted_and_traced(name):
    model, x, v = dense(name), images(OTHER), images(OTHER, batch=3)
    plain = fused(model, x)
    for form in (torch.jit.script(plain), torch.jit.trace(plain, x), torch.fx.symbolic_trace(plain)):
        assert_close(form(v), model(v))


def test_onnx_gives_the_same_for_any_batch(name, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    model, x, v = dense(name), images(OTHER), images(OTHER, batch=3)
    path = str(tmp_path / "model.onnx")
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    torch.onnx.export(fused(model, x), (x,), path, dynamo=True, verbose=False, **names)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": v.numpy()})[0]
    assert_close(torch.from_numpy(found), model(v))


def test_every_parameter_gets_a_gradient(name):
    model = dense(name, drop_rate=0.1, drop_path_rate=0.1).train()
    model(images(SIZE)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
