"""Recurrent mode against the full forward pass of the same layer, and against what `step` promises."""

import copy
import math

import pytest
import torch

from s4nd import S4ND
from s4nd.nn.kernels import KERNELS
from s4nd.ssm import DISCRETIZATIONS

F32, F64 = torch.float32, torch.float64
# Relative to the largest output. Float64: eps times 1,000 steps, and what the S4 kernel is computed to, 1e-11.
TOLERANCE = {F32: 1e-5, F64: 1e-10}


def causal(kernel: str = "s4", ndim: int = 1, **options) -> S4ND:
    torch.manual_seed(0)
    options = {"d_state": 16, "bidirectional": [False, *[True] * (ndim - 1)], **options}
    return S4ND(options.pop("d_model", 4), ndim, kernel=kernel, **options).eval()


def slow(kernel: str, dt_min: float, dt_max: float) -> dict[str, float]:
    """Options for small steps, or for what damps as little in a kernel without dt."""
    if "dt_min" in KERNELS[kernel].options():
        return {"dt_min": dt_min, "dt_max": dt_max}
    return {"r_min": math.exp(-dt_max), "r_max": math.exp(-dt_min)}


@torch.no_grad()
def stepped(layer: S4ND, u: torch.Tensor, axis: int = 0, n: int | None = None) -> torch.Tensor:
    state, outputs = None, []
    for u_t in u.unbind(2 + axis):
        y, state = layer.step(u_t, state, n=n)
        outputs.append(y)
    return torch.stack(outputs, dim=2 + axis)


@torch.no_grad()
def error(layer: S4ND, u: torch.Tensor, axis: int = 0, n: int | None = None) -> float:
    y = layer(u)
    steps = stepped(layer, u, axis, n)
    assert steps.dtype == y.dtype and steps.shape == y.shape
    largest = lambda x: x.transpose(0, 1).flatten(1).abs().amax(1)  # noqa: E731, per output channel
    return (largest(steps - y) / largest(y)).max().item()


INITS = [
    *(("s4", {"init": init, "n_ssm": 2}) for init in KERNELS["s4"].inits),
    *(("s4d", {"init": init, "disc": disc}) for init in KERNELS["s4d"].inits for disc in DISCRETIZATIONS),
    *((name, {}) for name in KERNELS if name not in ("s4", "s4d")),
]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(
    ("kernel", "options"), INITS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_thousand_steps_equal_the_full_pass(kernel, options, align, dtype):
    """On noise (heads 0, 1) and on a constant (heads 2, 3), where slow modes would add up what they round."""
    layer = causal(kernel, align=align, dtype=dtype, **slow(kernel, 1e-3, 0.1), **options)
    u = torch.randn(1, 4, 1000, dtype=dtype)
    u[:, 2:] = 1
    assert error(layer, u, n=1000) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("align", ["edge", "centre"])
def test_very_slow_modes_keep_their_digits_in_float32(kernel, align):
    layer = causal(kernel, align=align, **slow(kernel, 1e-4, 1e-3), d_state=64)
    assert error(layer, torch.ones(1, 4, 1000), n=1000) <= TOLERANCE[F32]


LAYERS = {
    "plane": dict(ndim=2),
    "second axis": dict(ndim=2, bidirectional=[True, False], axis=1),
    "video": dict(ndim=3, rank=2, channels=2),
    "middle axis": dict(ndim=3, bidirectional=[True, False, True], rank=3, axis=1),
    "first of two causal axes": dict(ndim=3, bidirectional=[True, False, False], axis=1),
    "rank in 1-D": dict(rank=3, channels=2),
    "dense": dict(ndim=2, rank=2, channels=2, out_channels=3),
    "dense in 1-D": dict(out_channels=3),
    "bandlimit": dict(ndim=2, bandlimit=0.2),
    "base_size": dict(ndim=2, base_size=[20, 4], bandlimit=0.5, n=True),
    "l_max beyond the axis": dict(base_size=20, l_max=20, n=True),
    "pooled space": dict(ndim=3, pool=[1, 2, 3]),
    "edge": dict(ndim=2, rank=2, align="edge"),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", LAYERS)
def test_steps_equal_the_full_pass_of_every_layer(name, kernel):
    options = {**LAYERS[name]}
    axis, _ = options.pop("axis", 0), options.pop("n", None)
    layer = causal(kernel, dtype=F64, **options)
    u = torch.randn(2, 4, *[30 if i == axis else 3 + i for i in range(layer.ndim)], dtype=F64)
    needs_n = "n" in LAYERS[name] or KERNELS[kernel].needs_length
    assert error(layer, u, axis, n=30 if needs_n else None) <= 1e-11


def test_bandlimit_is_applied_at_the_rate_of_n():
    layer = causal("s4d", base_size=32, bandlimit=0.2, dtype=F64)
    u = torch.randn(1, 4, 16, dtype=F64)
    assert error(layer, u, n=16) <= 1e-12 < error(layer, u, n=32)


def test_state_has_a_constant_size_and_serves_all_ranks_and_channels():
    layer = causal("s4", 2, rank=4, channels=3, out_channels=2)
    state = None
    for _ in range(3):
        _, state = layer.step(torch.randn(2, 4, 5), state)
        assert state.shape == (2, 4, 5, 16)


def test_state_can_be_indexed_by_image():
    layer, u = causal(dtype=F64), torch.randn(3, 4, 2, dtype=F64)
    _, state = layer.step(u[..., 0])
    y, _ = layer.step(u[..., 1], state)
    torch.testing.assert_close(layer.step(u[[2, 0], :, 1], state[[2, 0]])[0], y[[2, 0]])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("align", ["edge", "centre"])
def test_gradients_of_five_steps_equal_those_of_the_full_pass(kernel, align):
    layer = causal(kernel, 2, align=align, rank=2, base_size=[5, None], dtype=F64).train()
    u = torch.randn(2, 4, 5, 3, dtype=F64, requires_grad=True)
    weight = torch.randn(2, 4, 5, 3, dtype=F64)
    leaves = {"u": u, **dict(layer.named_parameters())}
    expected = torch.autograd.grad((weight * layer(u)).sum(), list(leaves.values()))
    state, loss = None, 0.0
    for t in range(5):
        y, state = layer.step(u[:, :, t], state, n=5)
        loss = loss + (weight[:, :, t] * y).sum()
    for name, g, e in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), expected, strict=True):
        torch.testing.assert_close(
            g, e, rtol=0, atol=1e-9 * e.abs().max().item(), msg=lambda m, name=name: f"{name}: {m}"
        )


def test_training_goes_on_from_a_detached_state():
    layer = causal("s4d").train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    state = None
    for _ in range(3):
        optimizer.zero_grad()
        y, state = layer.step(torch.randn(2, 4), state)
        y.square().sum().backward()
        optimizer.step()
        state = state.detach()


def test_evaluation_discretises_once_until_a_parameter_changes(monkeypatch):
    layer, u = causal(), torch.randn(1, 4, 3)
    calls, compute = [], type(layer.kernels[0]).recurrence
    monkeypatch.setattr(type(layer.kernels[0]), "recurrence", lambda *a, **k: calls.append(1) or compute(*a, **k))
    stepped(layer, u)
    assert len(calls) == 1
    with torch.no_grad():
        layer.kernels[0].log_dt += 0.1
    y = stepped(layer, u)
    assert len(calls) == 2
    torch.testing.assert_close(y, stepped(copy.deepcopy(layer).train(), u))


@pytest.mark.parametrize("options", [{}, {"ndim": 2}, {"out_channels": 3}, {"ndim": 2, "out_channels": 3}])
def test_half_precision_and_autocast_give_the_dtype_and_digits_of_the_full_pass(options):
    layer = causal("s4d", **options)
    u = torch.randn(2, 4, *[9, 5][: layer.ndim])
    exact, eps = layer(u).detach(), torch.finfo(torch.bfloat16).eps

    def close(y: torch.Tensor, full: torch.Tensor) -> bool:
        assert y.dtype == full.dtype
        return (y - exact).abs().max() <= 4 * eps * exact.abs().max()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(stepped(layer, u), layer(u))
        assert layer.step(u[:, :, 0])[1].dtype == F64
    layer.to(torch.bfloat16)
    assert close(stepped(layer, u.bfloat16()), layer(u.bfloat16()))


def test_inference_mode_leaves_a_layer_that_steps_elsewhere():
    layer, u = causal().requires_grad_(False), torch.randn(1, 4)
    with torch.inference_mode():
        y, _ = layer.step(u)
    v = u.clone().requires_grad_()
    layer.step(v)[0].sum().backward()
    torch.testing.assert_close(layer.step(u)[0], y)


WRONG = {
    "no causal axis": (dict(bidirectional=True), {}, r"needs a causal axis .*got bidirectional=\(True,\)"),
    "signal for a sample": (dict(), dict(u=torch.zeros(2, 4, 7)), r"needs u \(B, d_model=4\), .*got \(2, 4, 7\)"),
    "heads": (
        dict(ndim=2),
        dict(u=torch.zeros(2, 3, 7)),
        r"step along axis 1 needs u \(B, d_model=4, n_2\).*\(2, 3, 7\)",
    ),
    "empty axis": (dict(ndim=2), dict(u=torch.zeros(2, 4, 0)), r"no axis empty, got \(2, 4, 0\)"),
    "integers": ({}, dict(u=torch.zeros(2, 4, dtype=torch.int)), "floating-point u, got torch.int32"),
    "state": ({}, dict(state=torch.zeros(2, 4, 8)), r"state \(\*u.shape, N\) = \(2, 4, 16\), got \(2, 4, 8\)"),
    "base_size": (dict(base_size=8), {}, "needs n, the samples of the whole axis 1, because of base_size=8; got None"),
    "l_max": (dict(l_max=8), {}, "needs n, the samples of the whole axis 1, because of l_max=8; got None"),
    "short l_max": (dict(l_max=8), dict(n=9), "cannot end a kernel after 8 of n=9 samples, got l_max=8"),
    "pool": (dict(pool=2), {}, r"needs an axis without pooling, got pool=\(2,\) with axis 1 stepped"),
    "n": ({}, dict(n=0), "n must be a positive integer or None, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_refused_with_what_was_needed_and_what_came(name):
    options, call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        causal(**options).step(**{"u": torch.zeros(2, 4), **call})


@pytest.mark.parametrize("kernel", [name for name in KERNELS if KERNELS[name].needs_length])
def test_kernel_that_depends_on_the_length_needs_n(kernel):
    with pytest.raises(ValueError, match="depends on the axis's length: its recurrence needs n, got None"):
        causal(kernel).step(torch.zeros(2, 4))
