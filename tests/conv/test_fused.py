"""The fused forms, run by Triton's interpreter, against dense.py in float64 (large grids: the definition); and their choice.

The interpreter multiplies in float32 whatever the precision asked for, so that it tells nothing of TF32; and bfloat16 wrongly.
"""

import importlib.util
import math
import os
from types import SimpleNamespace

import pytest
import torch
from torch.func import vmap

from s4nd import S4ND
from s4nd.conv import fused, separable_conv
from s4nd.conv.definition import definition
from s4nd.conv.dense import dense_conv
from s4nd.conv.pooling import average_pool
from s4nd.ops import BackendError

F16, F32, F64 = torch.float16, torch.float32, torch.float64
CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1: tensors are on the CPU"
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter: numpy's on what a mask leaves out
]


@pytest.fixture
def tensor_cores(monkeypatch):
    """float32 with TF32 allowed, as on a GPU after torch.set_float32_matmul_precision("high")."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")


def leaves(sizes, rank=1, copies=1, images=2, heads=2, *, skipped=True, causal=()):
    """u, skip or None, and kernels, float64; on causal axes all lags below zero are zero."""
    torch.manual_seed(0)
    u = torch.randn(images, heads, *sizes, dtype=F64)
    kernels = [torch.randn(rank, copies, heads, 2 * n - 1, dtype=F64) for n in sizes]
    for axis in causal:
        kernels[axis][..., : sizes[axis] - 1] = 0
    return u, torch.randn(copies, heads, dtype=F64) if skipped else None, *kernels


def exact(u, kernels, skip, pool):
    if math.prod(u.shape[2:]) > 500:
        y = definition(u, kernels, skip, ["toeplitz"] * len(kernels))
    else:
        y = dense_conv(u, kernels)
        y = y if skip is None else y + skip.reshape(*skip.shape, *[1] * len(kernels)) * u[:, None]
    return average_pool(y, pool)


def plain(u, kernels, skip, pool):
    return average_pool(definition(u, kernels, skip, ["toeplitz"] * len(kernels)), pool)


def fused_conv(u, kernels, skip, pool):
    return separable_conv(u, kernels, skip, algorithm="fused", pool=pool)


def value_and_gradients(form, inputs, dtype, pool):
    """By name, in float64; u in `dtype`, kernels and skip in float32 or more, as a layer has them."""
    weights = torch.promote_types(dtype, F32)
    u, skip, *kernels = (x if x is None else x.to(dtype if i == 0 else weights) for i, x in enumerate(inputs))
    named = {"u": u, "skip": skip} | {f"k{i + 1}": k for i, k in enumerate(kernels)}
    wanted = {name: x.requires_grad_() for name, x in named.items() if x is not None}
    y = form(u, kernels, skip, pool)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    grads = torch.autograd.grad(y, list(wanted.values()), probe.to(y.dtype))
    assert y.dtype == dtype
    assert [g.dtype for g in grads] == [x.dtype for x in wanted.values()]
    return {"y": y.detach().double()} | {name: g.double() for name, g in zip(wanted, grads, strict=True)}


def form_of(sizes, rank, copies, pool, dtype):
    return fused.form(torch.empty(1, 1, *sizes, dtype=dtype), [torch.empty(rank, copies, 1, 1)], pool)


def rms(x):
    return x.square().mean().sqrt().item()


def assert_no_worse_than_plain(inputs, dtype, pool):
    """At most twice the error of plain torch in this dtype, or the rounding of a result."""
    inputs = [x if x is None else x.to(dtype if i == 0 else F32).double() for i, x in enumerate(inputs)]
    right, theirs, ours = (
        value_and_gradients(form, inputs, d, pool) for form, d in ((exact, F64), (plain, dtype), (fused_conv, dtype))
    )
    for name, e in right.items():
        assert ours[name].shape == e.shape
        assert rms(ours[name] - e) <= max(2 * rms(theirs[name] - e), torch.finfo(dtype).eps * rms(e)), name


@pytest.mark.parametrize(
    ("sizes", "rank", "copies", "skipped", "pool", "causal", "dtype"),
    [
        ((7, 7), 1, 1, True, (1, 1), (), F32),  # several images in a tile
        ((14, 12), 1, 1, True, (1, 1), (0, 1), F16),
        ((5, 18), 2, 2, True, (1, 1), (1,), F16),
        ((1, 9), 3, 1, False, (1, 1), (), F32),
        ((9, 1), 1, 2, False, (1, 1), (), F16),
        ((8, 8), 1, 1, True, (2, 2), (), F16),
        ((7, 10), 2, 2, True, (3, 2), (), F32),  # with a rest
        ((33, 40), 1, 1, True, (1, 1), (), F16),
        ((40, 24), 1, 1, True, (1, 2), (), F32),
    ],
)  # fmt: skip
def test_planes_equal_dense_with_gradients(tensor_cores, sizes, rank, copies, skipped, pool, causal, dtype):
    assert form_of(sizes, rank, copies, pool, dtype) == "plane"
    assert_no_worse_than_plain(leaves(sizes, rank, copies, skipped=skipped, causal=causal), dtype, pool)


@pytest.mark.parametrize(
    ("sizes", "rank", "copies", "skipped", "pool", "causal", "dtype"),
    [
        ((5,), 1, 1, True, (1,), (), F32),
        ((130,), 1, 2, True, (1,), (0,), F16),
        ((5, 7), 1, 1, True, (2, 2), (), F32),  # no TF32, no plane
        ((70, 3), 1, 1, True, (1, 1), (), F16),
        ((37, 34), 1, 1, False, (1, 1), (), F16),  # rows of a tile of 64 that are not aligned
        ((36, 2), 2, 1, True, (1, 2), (1,), F32),
        ((3, 5, 4), 1, 2, True, (1, 2, 1), (0,), F32),
        ((2, 1, 3), 2, 1, False, (1, 1, 1), (), F16),
    ],
)  # fmt: skip
def test_axes_equal_dense_with_gradients(sizes, rank, copies, skipped, pool, causal, dtype):
    assert form_of(sizes, rank, copies, pool, dtype) == "axes"
    assert_no_worse_than_plain(leaves(sizes, rank, copies, skipped=skipped, causal=causal), dtype, pool)


def test_no_image_of_a_stack_sees_another(tensor_cores):
    u, skip, *kernels = (x.float() for x in leaves((7, 7), images=5))
    one_by_one = [fused_conv(image[None], kernels, skip, (1, 1)) for image in u]
    torch.testing.assert_close(fused_conv(u, kernels, skip, (1, 1)), torch.cat(one_by_one), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["plane", "axes"])
def test_many_parts_of_a_batch_give_what_one_gives(monkeypatch, tensor_cores, form):
    """Of which a program has several stacks, or each stack a program, and gradients one kernel or several."""
    from s4nd.conv import _triton, _triton_axes

    monkeypatch.setattr(fused, "form", lambda *_: form)
    results = []
    for programs, together in ((1, True), (10**6, False)):
        monkeypatch.setattr(_triton, "PROGRAMS", programs)
        monkeypatch.setattr(_triton, "GRADIENT_PROGRAMS", programs)
        monkeypatch.setattr(_triton, "in_one", lambda *_, together=together: together)
        monkeypatch.setattr(_triton_axes, "PROGRAMS", programs)
        results.append(value_and_gradients(fused_conv, leaves((17, 6), images=5, heads=1), F32, (1, 1)))
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, rtol=0, atol=1e-5 * whole.abs().max().item(), msg=name)


@pytest.mark.parametrize("form", ["plane", "axes"])
@pytest.mark.parametrize("frozen", [("u",), ("skip", "k2"), ("k1", "k2"), ("u", "k1", "skip")])
def test_what_needs_no_gradient_gets_none_and_the_others_theirs(monkeypatch, tensor_cores, form, frozen):
    monkeypatch.setattr(fused, "form", lambda *_: form)
    inputs = leaves((4, 5), images=2)
    everything = value_and_gradients(fused_conv, inputs, F32, (1, 1))
    named = dict(zip(("u", "skip", "k1", "k2"), (x.float() for x in inputs), strict=True))
    for name, x in named.items():
        x.requires_grad_(name not in frozen)
    y = fused_conv(named["u"], [named["k1"], named["k2"]], named["skip"], (1, 1))
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(y.dtype))
    for name, x in named.items():
        if name in frozen:
            assert x.grad is None
        else:
            torch.testing.assert_close(x.grad.double(), everything[name], rtol=0, atol=1e-5)


def test_channels_last_and_strided_signals_give_the_same(tensor_cores):
    u, skip, *kernels = (x.float() for x in leaves((6, 5)))
    expected = fused_conv(u, kernels, skip, (1, 1))
    for same in (u.contiguous(memory_format=torch.channels_last), u.mT.contiguous().mT):
        leaf = same.detach().requires_grad_()
        y = fused_conv(leaf, kernels, skip, (1, 1))
        assert torch.equal(y, expected)
        assert y.is_contiguous()
        grad = torch.randn_like(y).mT.contiguous().mT
        (got,), (right,) = (torch.autograd.grad(f(leaf), leaf, grad) for f in (
            lambda u: fused_conv(u, kernels, skip, (1, 1)), lambda u: plain(u, kernels, skip, (1, 1))
        ))  # fmt: skip
        torch.testing.assert_close(got, right, rtol=0, atol=1e-5 * right.abs().max().item())


@pytest.mark.parametrize("pool", [(1, 1), (2, 1)])
def test_no_image_gives_an_empty_result_and_zero_gradients(tensor_cores, pool):
    u, skip, *kernels = (x.float().requires_grad_() for x in leaves((4, 5), images=0))
    y = fused_conv(u, kernels, skip, pool)
    assert y.shape == (0, 1, 2, 4 // pool[0], 5)
    y.sum().backward()
    assert all(x.grad.count_nonzero() == 0 for x in (skip, *kernels))


def test_second_derivatives_and_transforms_go_through_the_definition(tensor_cores):
    inputs = [x.float() for x in leaves((4, 3))]
    u, skip, *kernels = inputs
    results = []
    for algorithm in ("fused", "toeplitz"):
        conv = lambda u, k, algorithm=algorithm: separable_conv(  # noqa: E731
            u, [k, kernels[1]], skip, algorithm=algorithm, pool=(2, 1)
        )
        x, k = u.clone().requires_grad_(), kernels[0].clone().requires_grad_()
        (first,) = torch.autograd.grad(conv(x, k).square().sum(), k, create_graph=True)
        results.append((first, *torch.autograd.grad(first.square().sum(), (x, k)), vmap(conv)(u[None], k[None])))
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-4 * right.abs().max().item())


@pytest.mark.parametrize("form", ["plane", "axes"])
def test_compiled_call_is_one_operator_and_gives_the_same(monkeypatch, tensor_cores, form):
    from s4nd.conv.compiled import conv

    monkeypatch.setattr(fused, "form", lambda *_: form)
    pool = (2, 1) if form == "plane" else (1, 1)
    u, skip, *kernels = (x.float().requires_grad_() for x in leaves((4, 5)))
    torch.library.opcheck(conv, (u, skip, kernels, form, list(pool)), test_utils=("test_schema", "test_faketensor"))
    block = lambda u, skip, *kernels: fused_conv(u.sin(), kernels, skip, pool).cos()  # noqa: E731
    inputs = (u.detach().contiguous(memory_format=torch.channels_last).requires_grad_(), skip, *kernels)
    got, expected = torch.compile(block, backend="aot_eager", fullgraph=True)(*inputs), block(*inputs)
    assert torch.equal(got, expected)
    for g, e in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (got, expected)), strict=True):
        assert torch.equal(g, e)


@pytest.mark.parametrize("channels", [1, 2])
def test_layer_with_pooling_is_that_of_the_matrices(tensor_cores, channels):
    torch.manual_seed(0)
    layer = S4ND(2, d_state=4, channels=channels, pool=(2, 1), algorithm="fused")
    u, results = torch.randn(2, 2, 6, 5), []
    for algorithm in ("fused", "toeplitz"):
        layer.algorithm = algorithm
        y = layer(u)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-4 * right.detach().abs().max().item())


def test_autocast_convolves_in_its_dtype():
    u, skip, *kernels = (x.float() for x in leaves((4, 5)))
    with torch.autocast("cpu", dtype=F16):
        assert fused_conv(u, kernels, skip, (1, 1)).dtype == F16


def test_auto_never_takes_it_on_a_cpu(monkeypatch):
    monkeypatch.setattr(fused, "forward", lambda *_: pytest.fail("the fused form ran"))
    for dtype in (F16, F32, F64):
        u, skip, *kernels = (x.to(dtype) for x in leaves((4, 5)))
        separable_conv(u, kernels, skip, pool=(2, 1))


def test_auto_takes_it_where_the_device_is_a_gpu_that_runs_triton(monkeypatch, caplog):
    from s4nd.conv.separable import _is_fused

    gpu = SimpleNamespace(
        device=torch.device("cuda"), dtype=F32, shape=torch.Size((2, 3, 4))
    )  # all that is asked of a signal
    k = torch.empty(1, 1, 3, 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capability, triton, wrong, taken in (
        ((9, 0), None, None, True),
        ((7, 5), None, None, False),
        ((9, 0), "no compiler", None, False),
        ((9, 0), None, "value of a small convolution is wrong", False),
    ):
        fused._device_refusal.cache_clear()
        monkeypatch.setattr(fused, "triton_refusal", lambda device, reason=triton: reason)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        monkeypatch.setattr(fused, "_small_run", lambda device, reason=wrong: reason)
        caplog.clear()
        assert [_is_fused(gpu, [k], "auto") for _ in range(2)] == [taken, taken]
        assert len(caplog.records) == (0 if taken else 1)
    fused._device_refusal.cache_clear()


@pytest.mark.parametrize("form", ["plane", "axes"])
def test_small_run_notices_what_is_wrong(monkeypatch, form):
    right = fused.backward
    wrong = lambda f, *x: [g if g.ndim < 4 or f != form else 1.01 * g for g in right(f, *x)]  # noqa: E731
    assert fused._small_run(CPU) is None
    monkeypatch.setattr(fused, "backward", wrong)
    assert f"of a small convolution ({form}" in fused._small_run(CPU)


@pytest.mark.parametrize(
    ("u", "reason"),
    [
        (torch.zeros(1, 2, 3, dtype=F64), "float32, float16 and bfloat16, got torch.float64"),
        (torch.zeros(1, 2, 257), r"at most 256 samples, got the grid \(257,\)"),
        (torch.zeros(1, 2, 3, device="meta"), "cannot run here"),
    ],
)
def test_what_it_cannot_do_is_refused(u, reason):
    kernels = [torch.zeros(1, 1, 2, 2 * u.shape[-1] - 1, device=u.device)]
    with pytest.raises(
        BackendError, match=rf"algorithm='fused' cannot run here: .*{reason}" if u.device == CPU else reason
    ):
        separable_conv(u, kernels, algorithm="fused")


def test_too_many_kernels_and_no_triton_are_refused(monkeypatch):
    u, k = torch.zeros(1, 2, 3), torch.zeros(1, 1, 2, 5)
    monkeypatch.setattr(fused, "device_refusal", lambda device: "Triton is absent")
    with pytest.raises(BackendError, match="Triton is absent; 'auto' chooses what can"):
        separable_conv(u, [k], algorithm="fused")
    monkeypatch.setattr(fused, "HEADS", 2)
    with pytest.raises(BackendError, match=r"fewer than 2 kernels \(R C H\), got 2"):
        separable_conv(u, [k], algorithm="fused")


@pytest.mark.parametrize("pool", [(2,), (0, 1)])
def test_windows_that_are_none_are_refused(pool):
    u, skip, *kernels = leaves((4, 5))
    with pytest.raises(ValueError, match=r"a window of 1 or more per axis"):
        separable_conv(u, kernels, skip, pool=pool)
