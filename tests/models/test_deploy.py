"""Models through the deployment tools of timm, PyTorch and ONNX, against the models themselves."""

import copy
import io
import pickle

import pytest
import timm
import timm.utils.onnx
import torch
from timm.models import create_feature_extractor
from timm.utils import reparameterize_model
from torch import nn

import s4nd.models  # noqa: F401  registers the models
from s4nd import S4ND

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]

CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), img_size=64, d_state=8, num_classes=5)
VIT = dict(embed_dim=16, depth=2, num_heads=2, patch_size=8, img_size=32, d_state=8, num_classes=5)
MODELS = {  # name, arguments, and a size that is not the trained one
    "iso": ("s4nd_iso_tiny", dict(img_size=8, embed_dim=8, depth=2, channels=2, rank=2), (12, 10)),
    "seq": ("s4nd_seq_tiny", dict(img_size=8, embed_dim=8, depth=2, channels=2), (12, 10)),
    "seq, values": ("s4nd_seq_tiny", dict(img_size=8, embed_dim=8, depth=2, steps="value"), (12, 10)),
    "convnext": ("s4nd_convnext_tiny", CONVNEXT, (96, 72)),
    "convnext, all s4nd": (
        "s4nd_convnext_tiny",
        dict(CONVNEXT, stem="s4nd", downsample="s4nd", stem_channels=4),
        (100, 72),
    ),
    "vit, raster": ("s4nd_vit_tiny_patch16_224", dict(VIT, mixer_ndim=1), (44, 60)),
    "vit, grid": ("s4nd_vit_tiny_patch16_224", dict(VIT, mixer_ndim=2), (44, 60)),
}
EVERY = pytest.mark.parametrize("key", MODELS)


def small(key="iso", **more):
    """The model in evaluation, with weights at which every module matters to the logits."""
    torch.manual_seed(0)
    name, args, _ = MODELS[key]
    model = timm.create_model(name, **args, **more).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.is_meta:
            module.reset_parameters()
    for path, parameter in model.named_parameters():
        if path.endswith(".gamma"):  # layer scale, 1e-6 at first
            nn.init.ones_(parameter)
    return model


def images(key, size=None, batch=2):
    return torch.randn(batch, 3, *(size or MODELS[key][2]), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def fused(model, x):
    """The model fused at the size of x."""
    model(x)
    return reparameterize_model(model)


def assert_close(actual, expected, scale=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@EVERY
def test_reparameterized_model_gives_the_same_logits_at_the_size_of_its_first_input(key):
    model, x = small(key), images(key)
    with torch.no_grad():
        logits = model(x)
        found = reparameterize_model(model)
        assert not [m for m in found.modules() if isinstance(m, S4ND)]
        assert_close(found(x), logits)
        assert torch.equal(model(x), logits)  # the model itself is as it was
        assert_close(reparameterize_model(found)(x), logits)
        with pytest.raises(ValueError, match=r"fused at the grid \[\d+(, \d+)?\], not \[\d+(, \d+)?\]"):
            found(images(key, (64, 64)))


@EVERY
def test_reparameterized_model_can_be_scripted_traced_and_saved_for_any_batch(key):
    model, x = small(key), images(key)
    plain, v = fused(model, x), images(key, batch=3)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(plain), script)
    script.seek(0)
    for form in (torch.jit.load(script), torch.jit.trace(plain, x), torch.fx.symbolic_trace(plain)):
        assert_close(form(v), model(v))


def test_vit_of_one_size_can_be_scripted_and_traced():
    x = images("vit, grid", (32, 32))
    model = small("vit, grid", dynamic_img_size=False, dynamic_img_pad=False)
    for form in (torch.jit.script, torch.fx.symbolic_trace):
        assert_close(form(fused(model, x))(x), model(x))


@pytest.mark.parametrize("form", [torch.jit.script, torch.fx.symbolic_trace])
def test_vit_refuses_a_mask_in_every_form(form):
    x = images("vit, grid")
    model = form(fused(small("vit, grid"), x))
    for mask in (dict(attn_mask=torch.ones(1)), dict(is_causal=True)):
        with pytest.raises((ValueError, torch.jit.Error), match="S4ND has no attention mask"):
            model(x, **mask)


@EVERY
def test_reparameterized_model_can_be_exported_and_saved_for_any_batch(key):
    model, x = small(key), images(key)
    exported, v = io.BytesIO(), images(key, batch=3)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(fused(model, x), (x,), dynamic_shapes=batch), exported)
    exported.seek(0)
    assert_close(torch.export.load(exported).module()(v), model(v))


@pytest.mark.parametrize("exporter", ["export", "torchscript"])
@EVERY
def test_onnx_gives_the_same_logits_for_any_batch(key, exporter, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    model, x = small(key), images(key)
    path, v = str(tmp_path / "model.onnx"), images(key, batch=3)
    batch = {
        "export": dict(dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False),
        "torchscript": dict(dynamo=False, dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}),
    }
    torch.onnx.export(fused(model, x), (x,), path, input_names=["x"], output_names=["y"], **batch[exporter])
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["y"], {"x": v.numpy()})
    assert_close(torch.from_numpy(logits), model(v).detach())


@pytest.mark.parametrize("use_dynamo", [False, True])
def test_timms_onnx_export_takes_a_reparameterized_model_at_a_size_it_was_not_trained_at(use_dynamo, tmp_path):
    """As its onnx_export.py --reparam --img-size does; it compares ONNX Runtime's logits with the model's itself."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = reparameterize_model(small("convnext, all s4nd"))  # trained at 64
    options = dict(input_size=(3, 96, 72), batch_size=2, use_dynamo=use_dynamo, check_forward=True)
    timm.utils.onnx.onnx_export(model, str(tmp_path / "model.onnx"), **options)


@EVERY
def test_model_that_is_not_fused_can_be_exported_for_any_batch(key):
    model, v = small(key), images(key, batch=3)
    exported = torch.export.export(model, (images(key),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    assert_close(exported(v), model(v))


SMALLEST = {"iso": 2, "convnext, all s4nd": 64, "vit, raster": 17, "vit, grid": 17}  # two samples a side at every layer


@pytest.mark.slow
@pytest.mark.parametrize("key", SMALLEST)
def test_model_can_be_exported_for_all_sizes_from_two_samples_a_side_on(key):
    model, least = small(key), SMALLEST[key]
    height, width = (torch.export.Dim(name, min=least, max=512) for name in ("height", "width"))
    sizes = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    program = torch.export.export(model, (images(key, (96, 128)),), dynamic_shapes=sizes).module()
    for size in ((least, least + 1), (100, 70)):
        x = images(key, size, batch=3)
        assert_close(program(x), model(x).detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators:UserWarning")
def test_inductor_compiles_a_whole_model_in_one_graph():
    torch.compiler.reset()
    model, x = small("vit, raster"), images("vit, raster")
    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True)(x), model(x))


@EVERY
def test_fx_features_take_the_layer_as_a_leaf_and_any_size(key):
    model = small(key, drop_path_rate=0.0)  # torchvision warns of graphs that differ in training
    block = "stages.0.blocks.0" if "convnext" in key else "blocks.0"
    found = {}
    model.get_submodule(block).register_forward_hook(lambda _, __, y: found.update(block=y))
    features = create_feature_extractor(model, [block, "head"])
    for size in (MODELS[key][1]["img_size"],) * 2, MODELS[key][2]:
        x = images(key, size)
        extracted = features(x)
        assert torch.equal(extracted["head"], model(x))
        assert torch.equal(extracted[block], found["block"])


def test_model_that_is_not_fused_says_why_it_cannot_be_scripted():
    with pytest.raises(RuntimeError, match="S4ND cannot be scripted"):
        torch.jit.script(small())
    torch.jit.script(timm.create_model("conv_iso_tiny", embed_dim=8))


@EVERY
def test_channels_last_gives_the_same_logits(key):
    model, x = small(key), images(key)
    logits = model(x).detach()
    last = dict(memory_format=torch.channels_last)
    model, x = model.to(**last), x.to(**last)
    assert_close(model(x), logits)
    assert_close(fused(model, x)(x), logits)


@EVERY
def test_copies_pickles_and_reloaded_states_compute_the_same(key):
    model, x = small(key), images(key)
    other = small(key)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    plain = fused(model, x)
    for original, copies in {model: [copy.deepcopy(model), other], plain: [copy.deepcopy(plain)]}.items():
        for found in (*copies, pickle.loads(pickle.dumps(original))):
            assert torch.equal(found(x), original(x))


def on_meta(key):
    name, args, _ = MODELS[key]
    model = timm.create_model(name, device="meta", **args).eval()
    assert all(t.is_meta for name, t in model.state_dict().items() if not name.endswith("_extra_state"))
    return model


@EVERY
def test_model_of_the_meta_device_takes_the_weights_of_another(key):
    model, x = small(key), images(key)
    assigned, filled = on_meta(key), on_meta(key).to_empty(device="cpu")
    assigned.load_state_dict(model.state_dict(), assign=True)
    filled.load_state_dict(model.state_dict())
    for other in (assigned, filled):
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    "key", ["iso", "seq", "vit, raster", "vit, grid"]
)  # timm's ConvNeXt has no way to draw its layer scale
def test_model_of_the_meta_device_can_be_drawn_anew(key):
    model = on_meta(key).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    if "vit" in key:
        model.init_weights()
    else:
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(images(key)).isfinite().all()


class Rounded(nn.Module):
    """An S4ND layer that computes in float32 and rounds its output once."""

    def __init__(self, layer, dtype):
        super().__init__()
        self.layer, self.dtype = copy.deepcopy(layer).float(), dtype

    def forward(self, u):
        with torch.autocast("cpu", enabled=False):
            return self.layer(u.float()).to(self.dtype)


def with_rounded_layers(model, dtype):
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, S4ND):
            model.set_submodule(path, Rounded(module, dtype))
    return model


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY
def test_half_precision_layers_at_most_double_the_error_of_the_model(key, dtype, autocast):
    """RMS over the logits, against float64; the yardstick is the same model with layers that round their output only. A layer
    rounds 2 D times or less in place of once (tests/nn/test_half_precision.py), the rest of its block several times."""
    model, x = small(key), images(key, batch=16).to(dtype)
    model = model if autocast else model.to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        x = x.float() if autocast else x
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            logits = [m(x) for m in (model, fused(model, x), with_rounded_layers(model, dtype))]
    assert all(y.dtype == dtype for y in logits)
    ours, plain, yardstick = ((y.double() - exact).square().mean().sqrt() for y in logits)
    assert max(ours, plain) <= 2 * yardstick
    assert yardstick <= torch.finfo(dtype).eps * exact.abs().max()
