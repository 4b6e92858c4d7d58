"""Layers on CUDA without a GPU: every tensor is made where the signal is, and nothing of a step waits for the device.

Tensors are fake (tests/fake_cuda.py): an operation that mixes devices is an error, and one that would wait is counted. The
backward pass needs a device, so what it does of its own is run on fake tensors of the CPU.
"""

import contextlib

import pytest
import torch
from torch import nn

from s4nd import S4ND, frozen, param_groups
from s4nd.nn.kept import numbers_of
from s4nd.nn.kernels import KERNELS
from s4nd.ops import cauchy, dispatch
from tests.fake_cuda import fake_cuda, on_cuda

SIZE = (6, 7, 5)
VARIANTS = {
    "two axes": {},
    "causal, ranks, channels": dict(ndim=1, bidirectional=False, rank=2, channels=2),
    "pooled, windows, a bandlimit, edges": dict(pool=2, l_max=4, bandlimit=0.5, align="edge"),
    "dense": dict(out_channels=3, channels=2),
    "three axes": dict(ndim=3, bidirectional=[False, True, True], base_size=[None, 6, 6], n_ssm=None),
    "hold": dict(resample="hold"),
    "dilate": dict(resample="dilate"),
    "fold": dict(resample="fold"),
    "fft": dict(algorithm="fft"),
    "kronecker": dict(algorithm="kronecker"),
}


def layer_of(kernel, **options):
    return S4ND(8, **{"kernel": kernel, "d_state": 4, "base_size": 6, **options})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_forward_makes_every_tensor_on_the_device_and_waits_for_nothing(kernel, variant):
    if kernel == "s4" and variant == "fold":
        pytest.skip("s4 has no modes to fold")
    layer = layer_of(kernel, **VARIANTS[variant])
    size = SIZE[: layer.ndim]
    expected = layer(torch.zeros(2, 8, *size)).shape
    with fake_cuda() as waits:
        u = torch.empty(2, 8, *size, device="cuda")
        on_cuda(layer)
        with torch.autocast("cuda", torch.bfloat16):
            rounded = layer.train()(u)
        with torch.no_grad():
            evaluated = layer.eval()(u)
        for y, dtype in ((rounded, torch.bfloat16), (evaluated, torch.float32)):
            assert y.is_cuda and y.shape == expected and y.dtype == dtype
        assert waits.found == [] and waits.uploads == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_triton_are_made_on_the_device_without_running_it(kernel, monkeypatch):
    """Fake tensors have no memory that a program could be started on: they are told the result's shape."""
    pytest.importorskip("triton")
    layer = layer_of(kernel, backend="triton")
    monkeypatch.setattr(dispatch, "triton_refusal", lambda device: None)
    with fake_cuda() as waits:
        on_cuda(layer)
        y = layer(torch.empty(2, 8, 6, 7, device="cuda"))
        assert y.is_cuda and y.requires_grad
        w, x, z = (torch.empty(*shape, 2, device="cuda") for shape in ((2, 8, 4), (8, 4), (9,)))
        assert cauchy(w, x, z, backend="triton").shape == (2, 8, 9, 2)
        assert waits.found == [] and waits.uploads == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_backward_pass_reads_no_number(kernel):
    """On fake tensors of the CPU: none of them has a number that could be read."""
    layer = layer_of(kernel, rank=2)
    with fake_cuda() as waits:
        on_cuda(layer, "cpu")
        u = torch.empty(2, 8, 6, 7, requires_grad=True)
        layer(u).sum().backward()
        assert u.grad.shape == u.shape and all(p.grad is not None for p in layer.parameters())
    assert waits.found == []


def test_evaluation_on_a_device_compares_nothing_and_keeps_nothing(monkeypatch):
    """Whether the weights are the same would have to be read from the device: unless it is promised, see `frozen`."""
    layer = layer_of("s4d").eval()
    made = []
    monkeypatch.setattr(layer, "_plan", lambda *args, of=layer._plan: made.append(args) or of(*args))
    with fake_cuda() as waits, torch.no_grad():
        on_cuda(layer)
        u = torch.empty(2, 8, 6, 7, device="cuda")
        layer(u), layer(u)
        assert len(made) == 2 and layer.kept.entries == 0
        with frozen(layer):
            layer(u), layer(u), layer(u)
            assert len(made) == 3
        assert waits.found == [] and waits.uploads == []


def test_numbers_are_compared_on_the_cpu_alone():
    on_host, elsewhere = layer_of("s4d"), layer_of("s4d", device="meta")
    assert all(type(p) is nn.Parameter for p in elsewhere.parameters())
    assert numbers_of((), on_host.kernels, [on_host.D]) is not None
    assert numbers_of((), elsewhere.kernels, [elsewhere.D]) is None


@pytest.mark.parametrize(
    "variant", ["two axes", "causal, ranks, channels", "pooled, windows, a bandlimit, edges", "dense"]
)
def test_fused_layer_runs_on_the_device(variant):
    layer = layer_of("s4d", **VARIANTS[variant]).eval()
    size = SIZE[: layer.ndim]
    expected = layer(torch.zeros(2, 8, *size)).shape
    with fake_cuda() as waits, torch.no_grad():
        on_cuda(layer)
        u = torch.empty(2, 8, *size, device="cuda")
        for fused in (layer.plan(size), layer.fuse(size)):
            y = fused(u)
            assert y.is_cuda and y.shape == expected
        assert waits.found == [] and waits.uploads == []


@pytest.mark.parametrize("kernel", ["s4", "s4d", "lru", "ema"])
def test_stepping_runs_on_the_device_and_waits_for_nothing(kernel):
    layer = layer_of(kernel, ndim=1, bidirectional=False, base_size=None)
    with fake_cuda() as waits:
        on_cuda(layer)
        u, state = torch.empty(2, 8, 3, device="cuda"), None
        for frame in u.unbind(-1):
            y, state = layer.step(frame, state)
            assert y.is_cuda and state.is_cuda
        assert waits.found == [] and waits.uploads == []


def test_cauchy_products_run_on_the_device_and_wait_for_nothing():
    with fake_cuda() as waits:
        w, x, z = (torch.empty(*shape, 2, device="cuda") for shape in ((2, 8, 4), (8, 4), (9,)))
        assert cauchy(w, x, z).is_cuda
        assert waits.found == []


def test_optimizer_is_built_of_parameters_of_the_device():
    model = nn.Sequential(layer_of("s4"), nn.Conv2d(8, 8, 1))
    with fake_cuda() as waits:
        on_cuda(model)
        optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, weight_decay=0.05))
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()
        optimizer.step()
        assert waits.found == []


def test_what_waits_is_found():
    """Each kind of it, so that an empty list means that there is none."""
    with fake_cuda() as waits:
        x, mask = torch.empty(4, device="cuda"), torch.empty(4, device="cuda", dtype=torch.bool)
        quiet = [
            lambda: x + 1,
            lambda: torch.where(mask, 1.0, x),
            lambda: x.masked_fill(mask, 0),
            lambda: x * torch.tensor(2.0),  # a number of the host travels with the launch
            lambda: x[1:],
            lambda: x.to(torch.float64),
            lambda: torch.zeros(3, device="cuda"),
        ]
        for run in quiet:
            run()
        assert waits.found == []
        loud = [
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: x.new_tensor([1.0]),
            lambda: x.cpu(),
            lambda: torch.empty(4).to("cuda"),
            lambda: x.copy_(torch.empty(4)),
            lambda: torch.where(mask, torch.tensor(1.0), x),
            lambda: x[torch.empty(2, dtype=torch.int64)],
            lambda: torch.equal(x, x),
            lambda: x.sum().item(),
            lambda: bool(mask.any()),
            lambda: torch.nonzero(x),
            lambda: x[mask],
            lambda: torch.linalg.inv(x.reshape(2, 2)),
        ]
        for i, run in enumerate(loud):
            before = len(waits.found)
            with contextlib.suppress(RuntimeError):  # for want of numbers
                run()
            assert len(waits.found) > before, i
        torch.empty(4).to("cuda", non_blocking=True)
        assert waits.uploads == [(4,)]
