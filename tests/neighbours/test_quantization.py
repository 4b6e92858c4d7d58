"""Linear layers in int8, by torchao and by torch's own dynamic quantization, against the floating-point model.

Of a Linear (s the step between neighbouring int8 numbers): |W_q x_q - W x| <= |W_q - W| |x| + |W_q| |x_q - x|, where a number
that is rounded errs by half a step.
"""

import copy

import pytest
import timm
import torch
from torch import nn

import s4nd
from s4nd.train.data import ImageTransforms, Rendering, build_dataset, make_loader
from s4nd.train.model import to_input
from tests.small import SIZES, build, images, layers

torchao = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install torchao")

F32 = torch.float32
CONFIGS = {
    "weights": torchao.Int8WeightOnlyConfig,
    "weights and activations": torchao.Int8DynamicActivationInt8WeightConfig,
}
NAMES = ["s4nd_iso_tiny", "s4nd_convnext_micro", "s4nd_vit_tiny_patch16_224", "s4nd_convnext3d_micro"]

every_model = pytest.mark.parametrize("name", NAMES)
every_config = pytest.mark.parametrize("config", CONFIGS)
# What torch says of its own quantization, which its users know.
of_torch = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]


def model_in_float(name, seed=1):
    """With another resampling method than it is built with, which has to survive."""
    model = build(name, seed, F32)
    s4nd.set_resample(model, "dilate")
    return model


def in_int8(model, config):
    model = copy.deepcopy(model)
    torchao.quantize_(model, CONFIGS[config]())
    return model


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def every_size(name):
    return [images(name, number, dtype=F32) for number in range(len(SIZES[name]))]


def step(x, dim=-1):
    """Between int8 numbers that reach 127 at the largest of each row."""
    return x.abs().amax(dim, keepdim=True) / 127


@every_config
@every_model
def test_linear_layers_are_in_int8_and_everything_else_stays(name, config):
    model = model_in_float(name)
    quantised = in_int8(model, config)
    changed = {n for n, p in quantised.named_parameters() if type(p) is not nn.Parameter}
    assert changed == {f"{n}.weight" for n in linears(model)} and changed
    for n, p in model.named_parameters():
        if n not in changed:
            assert quantised.get_parameter(n).dtype == F32 and torch.equal(quantised.get_parameter(n), p), n
    assert [k.sampling for k in layers(quantised).values()] == [k.sampling for k in layers(model).values()]


@every_model
@torch.no_grad()
def test_int8_weights_are_rounded_ones_and_answer_as_these_at_every_size(name):
    model = model_in_float(name)
    quantised = in_int8(model, "weights")
    for n, linear in linears(model).items():
        rounded = quantised.get_submodule(n).weight.dequantize()
        assert ((rounded - linear.weight).abs() <= step(linear.weight) * (0.5 + 1e-5)).all()
        linear.weight.copy_(rounded)
    for x in every_size(name):
        expected = model(x)
        torch.testing.assert_close(quantised(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@every_model
@torch.no_grad()
def test_int8_activations_err_by_their_roundings_at_every_size(name):
    """Every Linear, on the input that it gets in the model."""
    model = model_in_float(name)
    quantised, seen = in_int8(model, "weights and activations"), []
    hooks = [
        module.register_forward_hook(lambda module, args, y, n=n: seen.append((n, args[0], y)))
        for n, module in linears(quantised).items()
    ]
    for x in every_size(name):
        quantised(x)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks) * len(SIZES[name])
    for n, x, y in seen:
        check_linear(model.get_submodule(n), x, y, step(model.get_submodule(n).weight).mT, step(x))


def check_linear(linear, x, y, weight_step, input_step):
    """y of the input x against the float one; steps of the weights, (1, out) or a number, and of the inputs, (..., 1)."""
    size, total = x.abs().sum(-1, keepdim=True), linear.weight.abs().sum(1)
    bound = weight_step / 2 * size + input_step / 2 * (total + weight_step[0] / 2 * x.shape[-1])
    exact = linear(x)
    assert ((y - exact).abs() <= bound + 1e-5 * exact.abs().max()).all()
    assert not torch.equal(y, exact)


@every_config
@every_model
@torch.no_grad()
def test_saved_state_answers_the_same_in_a_model_built_otherwise(name, config, tmp_path):
    quantised = in_int8(model_in_float(name), config)
    torch.save(quantised.state_dict(), tmp_path / "int8.pt")
    other = build(name, 2, F32, img_size=SIZES[name][0][-1] * 2)
    other.load_state_dict(torch.load(tmp_path / "int8.pt", weights_only=True), assign=True)
    for x in every_size(name):
        assert torch.equal(other(x), quantised(x))
    assert [k.sampling for k in layers(other).values()] == [k.sampling for k in layers(quantised).values()]


@pytest.mark.parametrize("size", [16, 24])
@every_config
@torch.no_grad()
def test_photographs_keep_their_answers(config, size):
    """Of a shipped tag, but for those whose two best logits lie nearer than the error of the classifier, its one Linear."""
    pytest.importorskip("skimage", reason="needs the extra: pip install 's4nd[demo]'")
    model = timm.create_model("s4nd_iso_tiny.photos", pretrained=True).eval()
    quantised, head = in_int8(model, config), model.get_classifier()
    assert list(linears(model).values()) == [head]
    dataset = build_dataset("photos", None, "test", limit=64)
    loader = make_loader(dataset, size, 32, train=False, rendering=Rendering(transforms=ImageTransforms()))
    decided = 0
    for batch, _ in loader:
        x = to_input(batch, model, torch.device("cpu"))
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        logits, found = model(x), quantised(x)
        bound = step(head.weight).mT / 2 * pooled.abs().sum(1, keepdim=True)
        if config == "weights and activations":
            bound = bound + step(pooled) / 2 * (head.weight.abs() + step(head.weight) / 2).sum(1)
        assert ((found - logits).abs() <= bound + 1e-5 * logits.abs().max()).all()
        best = logits.topk(2).values
        sure = best[:, 0] - best[:, 1] > 2 * bound.amax(1)
        assert torch.equal(found.argmax(1)[sure], logits.argmax(1)[sure])
        decided += sure.sum().item()
    assert decided > 0.8 * len(dataset)


class TestTorchs:
    """torch.ao.quantization.quantize_dynamic: weights and activations with one step a tensor."""

    pytestmark = of_torch

    @staticmethod
    def quantised(model):
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    @every_model
    @torch.no_grad()
    def test_layers_err_by_their_roundings_at_every_size(self, name):
        model, seen = model_in_float(name), []
        quantised = self.quantised(model)
        for n in linears(model):
            module = quantised.get_submodule(n)
            assert module.weight().dtype == torch.qint8
            module.register_forward_hook(lambda module, args, y, n=n: seen.append((n, args[0], y)))
        for x in every_size(name):
            quantised(x)
        for n, x, y in seen:
            linear = model.get_submodule(n)
            weight_step = linear.weight.abs().max().reshape(1, 1) / 127
            reach = x.amax().clamp(min=0) - x.amin().clamp(max=0)
            # 128 numbers, for instructions that would overflow with 256; their zero is a number too, and moves the ends.
            check_linear(linear, x, y, weight_step, 2 * (reach / 127).reshape(1))
        assert len(seen) == len(linears(model)) * len(SIZES[name])
        for n, p in quantised.named_parameters():
            assert p.dtype == F32 and torch.equal(p, model.get_parameter(n)), n

    @every_model
    @torch.no_grad()
    def test_saved_state_answers_the_same_in_a_model_built_otherwise(self, name, tmp_path):
        quantised = self.quantised(model_in_float(name))
        torch.save(quantised.state_dict(), tmp_path / "int8.pt")
        other = self.quantised(build(name, 2, F32, img_size=SIZES[name][0][-1] * 2))
        other.load_state_dict(torch.load(tmp_path / "int8.pt", weights_only=False))  # it has quantised tensors
        for x in every_size(name):
            assert torch.equal(other(x), quantised(x))
