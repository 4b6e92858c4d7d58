"""A layer's plan in every form against the layer; pooling against torch's; the compiled and the exported layer against it."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from s4nd import S4ND
from s4nd.nn import plan

F64 = torch.float64
DYNAMIC = torch.export.Dim.DYNAMIC

# PyTorch announces the end of TorchScript with every use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):FutureWarning")

LAYERS = {
    "1 axis": (dict(ndim=1), (9,)),
    "1 axis, pooled": (dict(ndim=1, rank=2, channels=2, pool=2), (9,)),
    "1 axis, long": (dict(ndim=1, channels=2), (70,)),
    "1 axis, long, causal, pooled": (dict(ndim=1, rank=2, bidirectional=False, pool=3), (67,)),
    "2 axes": (dict(), (9, 12)),
    "2 axes, one sample along one": (dict(rank=2), (1, 70)),
    "2 axes, small": (dict(), (7, 7)),
    "2 axes, pooled": (dict(rank=3, channels=2, pool=2), (9, 13)),
    "2 axes, pooled, small": (dict(rank=3, channels=2, pool=(2, 3)), (7, 5)),
    "dense": (dict(out_channels=5, rank=2, channels=2), (9, 13)),
    "dense, pooled, small": (dict(out_channels=5, rank=2, channels=2, pool=2), (5, 7)),
    "video": (dict(ndim=3, bidirectional=[False, True, True], rank=2, pool=(1, 2, 2)), (5, 6, 7)),
    "dense video": (dict(ndim=3, out_channels=2, channels=3), (5, 4, 5)),
    "4 axes": (dict(ndim=4, rank=2, channels=2), (3, 3, 4, 5)),
    "4 axes, dense, small": (dict(ndim=4, out_channels=3), (2, 1, 4, 3)),
}


def make(name="2 axes, pooled", dtype=torch.float32, **more):
    """The layer, in evaluation, an input for it, and the grid of the input."""
    torch.manual_seed(0)
    options, size = LAYERS[name]
    layer = S4ND(3, d_state=8, dtype=dtype, **{"kernel": "s4d", **options, **more}).eval()
    return layer, torch.randn(2, 3, *size, dtype=dtype), size


def assert_close(actual, expected, scale=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
@pytest.mark.parametrize("name", LAYERS)
def test_fused_layer_equals_layer(name, kernel):
    for dtype, scale in ((F64, 1e-12), (torch.float32, 1e-5)):
        layer, u, size = make(name, dtype, kernel=kernel, base_size=5, bandlimit=0.8)
        assert_close(layer.fuse(size)(u), layer(u).detach(), scale)


@pytest.mark.parametrize("form", ["AxisConv", "AxisSpectrum", "KeptKernels", "chosen"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_form_of_a_plan_equals_the_layer_in_training(name, form, monkeypatch):
    """With whole kernels and with windows."""
    if form != "chosen":
        monkeypatch.setattr(plan, "EXPORTED_TAPS", 0 if form == "AxisSpectrum" else 1000)
        monkeypatch.setattr(plan, "_prefers_convolutions", lambda *_: form == "AxisConv")
    for window, align in ((None, "centre"), (3, "centre"), (3, "edge")):
        layer, u, size = make(name, F64, base_size=5, bandlimit=0.8, l_max=window, align=align)
        expected = copy.deepcopy(layer).train()(u).detach()
        with torch.no_grad():
            assert_close(layer(u), expected)
        assert_close(layer.fuse(size)(u), expected)
        if form.startswith("Axis"):
            assert form in {type(m).__name__ for m in layer.fuse(size).modules()}


def test_fused_layer_holds_buffers_only():
    for name in LAYERS:
        layer, _, size = make(name)
        fused = layer.fuse(size)
        kinds = {"Plan", "AxisByAxis", "Sequential", "AxisConv", "AxisSpectrum"}
        assert {type(m).__name__ for m in fused.modules()} <= kinds
        assert not list(fused.parameters()) and not list(layer.fuse().parameters())
        assert all(t.is_contiguous() and t.numel() == t.untyped_storage().nbytes() // 4 for t in fused.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_half_precision_layer_stays_in_half_precision(dtype):
    for name in ("2 axes", "2 axes, small", "dense"):
        layer, u, size = make(name)
        y = layer(u).detach()
        fused = layer.to(dtype).fuse(size)
        half = fused(u.to(dtype))
        assert half.dtype == dtype
        # Input, matrices, both products and the skip, each rounded.
        assert_close(half.float(), y, 8 * torch.finfo(dtype).eps)
        with torch.autocast("cpu", dtype=dtype):
            assert_close(fused.float()(u).float(), y, 8 * torch.finfo(dtype).eps)


def test_plan_without_a_size_takes_the_grid_of_its_first_input_and_no_other_after_it():
    torch.manual_seed(0)
    layer = S4ND(3, d_state=8, base_size=(6, 7)).eval()
    for size in ((6, 7), (8, 9)):
        fused, u = copy.deepcopy(layer.fuse()).double(), torch.randn(2, 3, *size, dtype=F64)
        assert_close(fused(u), copy.deepcopy(layer).double()(u).detach(), 1e-6)
        assert fused.size == list(size) and not list(fused.parameters())
        with pytest.raises(ValueError, match=rf"fused at the grid \[{size[0]}, {size[1]}\], not \[4, 4\]"):
            fused(torch.randn(2, 3, 4, 4, dtype=F64))
    assert layer.fuse(5).size == layer.fuse(np.int64(5)).size == [5, 5]
    assert layer.fuse((5, 3)).size == [5, 3]


def test_plan_scripted_before_its_first_input_is_of_the_last_evaluation_or_else_of_the_trained_grid():
    layer, script = S4ND(3, d_state=8, base_size=(6, 7)), torch.jit.script
    assert script(layer.fuse()).size == [6, 7]
    layer(torch.randn(1, 3, 4, 5))  # training
    assert script(layer.fuse()).size == [6, 7]
    with torch.no_grad():
        layer.eval()(torch.randn(1, 3, 8, 9))
    assert script(layer.fuse()).size == script(copy.deepcopy(layer).fuse()).size == [8, 9]


def test_grid_that_nothing_tells_is_asked_for():
    for form in (torch.jit.script, lambda m: torch.export.export(m, (torch.randn(1, 3, 8, 8),))):
        with pytest.raises(ValueError, match="fused for no grid yet: run the fused model once"):
            form(S4ND(3, base_size=(None, 8)).fuse())
    with pytest.raises(ValueError, match=r"size must be one value or one per axis \(ndim=2\), got \(3, 4, 5\)"):
        S4ND(3).fuse((3, 4, 5))
    with pytest.raises(ValueError, match="size must be a positive integer, got 0"):
        S4ND(3).fuse(0)


@pytest.mark.parametrize("form", ["module", "script", "fx"])
@pytest.mark.parametrize("name", ["2 axes, pooled", "2 axes, small", "dense"])
def test_another_grid_is_refused_with_both_grids(name, form):
    layer, _, size = make(name)
    fused = {"module": lambda m: m, "script": torch.jit.script, "fx": torch.fx.symbolic_trace}[form](layer.fuse(size))
    other = [n + 1 for n in size]
    expected = rf"was fused at the grid \[{size[0]}, {size[1]}\], not \[{other[0]}, {other[1]}\]"
    with pytest.raises(torch.jit.Error if form == "script" else ValueError, match=expected):
        fused(torch.randn(2, 3, *other))


@pytest.mark.parametrize("name", LAYERS)
def test_fused_layer_can_be_scripted_traced_and_exported_for_any_batch(name):
    layer, u, size = make(name)
    fused = layer.fuse(size)
    forms = [
        torch.jit.script(fused),
        torch.jit.trace(fused, u),
        torch.fx.symbolic_trace(fused),
        torch.export.export(fused, (u,), dynamic_shapes=({0: DYNAMIC},)).module(),
    ]
    v = torch.randn(5, *u.shape[1:])
    for form in forms:
        assert_close(form(v), fused(v), 1e-6)
        with pytest.raises((AssertionError, RuntimeError, ValueError, torch.jit.Error)):
            form(torch.randn(2, 3, *(n + 1 for n in size)))


def test_scripted_and_exported_layers_can_be_saved():
    layer, u, size = make()
    fused = layer.fuse(size)
    script, exported = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(fused), script)
    torch.export.save(torch.export.export(fused, (u,)), exported)
    script.seek(0), exported.seek(0)
    assert torch.equal(torch.jit.load(script)(u), fused(u))
    assert_close(torch.export.load(exported).module()(u), fused(u), 1e-6)


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.parametrize("exporter", ["export", "torchscript"])
@pytest.mark.parametrize("name", ["2 axes, pooled", "2 axes, small", "dense", "video", "4 axes"])
def test_onnx_gives_the_same_for_any_batch(name, exporter, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    layer, u, size = make(name)
    fused, path = layer.fuse(size), str(tmp_path / "layer.onnx")
    batch = {
        "export": dict(dynamo=True, dynamic_shapes=({0: DYNAMIC},), verbose=False),
        "torchscript": dict(dynamo=False, input_names=["u"], dynamic_axes={"u": {0: "batch"}}),
    }
    torch.onnx.export(fused.eval(), (u,), path, **batch[exporter])
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    v = torch.randn(5, *u.shape[1:])
    (y,) = session.run(None, {session.get_inputs()[0].name: v.numpy()})
    assert_close(torch.from_numpy(y), fused(v), 1e-6)


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
def test_layer_that_is_not_fused_says_why_it_cannot_be_scripted_or_traced():
    layer, u, _ = make()
    for module in (layer, torch.nn.Sequential(layer)):
        forms = [
            lambda m: torch.jit.script(m),
            lambda m: torch.jit.trace(m, u),
            lambda m: torch.onnx.export(m, (u,), io.BytesIO(), dynamo=False),
        ]
        for form in forms:
            with pytest.raises(RuntimeError, match=r"S4ND cannot be scripted or traced.*reparameterize_model"):
                form(module)


@pytest.mark.parametrize("name", ["2 axes, pooled", "2 axes, small", "dense"])
def test_copies_pickles_and_reloaded_states_of_a_fused_layer_compute_the_same(name):
    layer, u, size = make(name)
    fused = layer.fuse(size)
    reloaded = S4ND(3, d_state=8, **LAYERS[name][0]).fuse(size)
    assert not torch.equal(reloaded(u), fused(u))
    reloaded.load_state_dict(fused.state_dict())
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), reloaded):
        assert torch.equal(other(u), fused(u))


def test_fused_layer_does_not_follow_its_layer():
    layer, u, size = make()
    with torch.no_grad():
        layer(u)
        fused = layer.fuse(size)
        y = fused(u)
        for p in layer.parameters():
            p += 0.1
    assert torch.equal(fused(u), y)


@pytest.mark.parametrize("name", ["2 axes, pooled", "dense"])
def test_pickled_and_assigned_layers_compute_the_same(name):
    layer, u, _ = make(name)
    assigned = S4ND(3, d_state=8, kernel="s4d", device="meta", **LAYERS[name][0]).eval()
    assigned.load_state_dict(layer.state_dict(), assign=True)
    for other in (pickle.loads(pickle.dumps(layer)), assigned):
        assert torch.equal(other(u), layer(u))


@pytest.mark.parametrize(("size", "pool"), [((9,), 2), ((8, 9), 2), ((7, 11), (3, 2)), ((5, 4, 7), (1, 2, 3))])
def test_pooling_is_torchs_average_pooling_of_the_output(size, pool):
    torch.manual_seed(0)
    options = dict(ndim=len(size), d_state=8, kernel="s4d", channels=2, dtype=F64)
    plain, pooled = S4ND(3, **options), S4ND(3, pool=pool, **options)
    pooled.load_state_dict(plain.state_dict())
    u = torch.randn(2, 3, *size, dtype=F64)
    assert_close(pooled(u), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1](plain(u), pool))


def test_pooling_of_four_axes_is_the_mean_of_each_window():
    torch.manual_seed(0)
    plain, pooled = (S4ND(3, 4, d_state=8, pool=pool, dtype=F64) for pool in (1, (2, 1, 3, 2)))
    pooled.load_state_dict(plain.state_dict())
    u = torch.randn(1, 3, 5, 2, 4, 5, dtype=F64)
    y = plain(u)[:, :, :4, :, :3, :4].reshape(1, 3, 2, 2, 2, 1, 3, 2, 2)
    assert_close(pooled(u), y.mean((3, 6, 8)))


def test_pooling_window_must_fit():
    with pytest.raises(ValueError, match="pool must be a positive integer, got 0"):
        S4ND(3, pool=0)
    layer = S4ND(3, d_state=8, pool=(2, 4))
    for run in (lambda: layer(torch.zeros(1, 3, 4, 3)), lambda: layer.fuse((4, 3))):
        with pytest.raises(ValueError, match=r"pool=\(2, 4\), got the grid \(4, 3\)"):
            run()


def results(module, layer, u):
    """Output, and gradients of the input and of every parameter."""
    u = u.clone().requires_grad_()
    y = module(u)
    return [y, *torch.autograd.grad(y.square().sum(), [u, *layer.parameters()])]


@pytest.mark.parametrize(("kernel", "training"), [("s4", True), ("s4d", True), ("s4d", False)])
def test_whole_layer_compiles_with_its_gradients(kernel, training):
    torch.compiler.reset()
    layer, u, _ = make("2 axes, pooled, small", kernel=kernel, base_size=6, bandlimit=0.5)
    layer.train(training)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = results(compiled, layer, u)
    for actual, expected in zip(found, results(layer, layer, u), strict=True):
        assert_close(actual, expected, 1e-5)


def test_compiled_evaluation_keeps_its_kernels_follows_the_weights_and_is_compiled_once_for_all_sizes():
    torch.compiler.reset()
    layer, _, _ = make("2 axes, pooled", kernel="s4")
    graphs, kernels = CompileCounterWithBackend("aot_eager"), []
    kernel_class, compute = type(layer.kernels[0]), type(layer.kernels[0])._kernel
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=True)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_class, "_kernel", lambda *args: kernels.append(1) or compute(*args))
        for size in ((9, 13), (8, 6), (20, 21)):
            u = torch.randn(2, 3, *size)
            y = compiled(u)
            computed = len(kernels)
            assert torch.equal(compiled(u), y) and len(kernels) == computed
            assert_close(y, copy.deepcopy(layer).train()(u), 1e-5)
        layer.kernels[0].C.data.mul_(2)
        assert_close(compiled(u), copy.deepcopy(layer).train()(u), 1e-5)
    assert graphs.frame_count == 1
    others = {name: 0.5 * p.detach() for name, p in layer.named_parameters()}
    with torch.no_grad():  # with other parameters than its own
        found = torch.compile(lambda u: torch.func.functional_call(layer, others, (u,)), backend="aot_eager")(u)
        assert_close(found, torch.func.functional_call(layer, others, (u,)), 1e-5)


@pytest.mark.slow
def test_inductor_compiles_the_layer_and_the_fused_layer():
    torch.compiler.reset()
    layer, u, size = make("1 axis", align="edge")
    with torch.no_grad():
        for module in (layer, layer.fuse(size)):
            assert_close(torch.compile(module, fullgraph=True)(u), layer(u), 1e-5)


@pytest.mark.parametrize(("kernel", "base_size"), [("s4", 12), ("s4d", None)])
def test_layer_can_be_exported_for_one_size_or_for_all(kernel, base_size):
    layer, u, _ = make("2 axes", kernel=kernel, base_size=base_size)
    assert_close(torch.export.export(layer, (u,)).module()(u), layer(u), 1e-5)
    h, w = (torch.export.Dim(name, min=3, max=256) for name in "hw")
    exported = torch.export.export(layer, (u,), dynamic_shapes=({0: DYNAMIC, 2: h, 3: w},)).module()
    for size in ((3, 3), (17, 100)):
        v = torch.randn(3, 3, *size)
        assert_close(exported(v), layer(v), 1e-5)
