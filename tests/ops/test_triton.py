"""Triton's forms of the products, run by its interpreter, against their definitions in float64; and when they are chosen."""

import functools
import importlib.util
import logging
import os

import pytest
import torch
from torch.func import vmap

from s4nd.ops import BackendError, cauchy, dispatch, vandermonde
from s4nd.ops.cauchy import cauchy_definition
from s4nd.ops.vandermonde import vandermonde_definition
from s4nd.ssm import dplr_kernel
from tests.ops.test_cauchy import arguments

F64 = torch.float64
CPU = torch.device("cpu")
triton_vandermonde = functools.partial(vandermonde, backend="triton")
triton_cauchy = functools.partial(cauchy, backend="triton")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1: tensors are on the CPU"
    ),
    pytest.mark.filterwarnings("default"),  # of the interpreter: numpy's on infinite values, which no sum takes
]


def weights_and_poles(J=3, H=2, N=5, dtype=F64, slow=1.0):
    torch.manual_seed(0)
    x = torch.stack([-torch.rand(H, N, dtype=F64), 3 * torch.randn(H, N, dtype=F64)], dim=-1)
    return torch.randn(J, H, N, 2, dtype=dtype), x * slow


def value_and_gradients(form, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = form(*leaves)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(y.dtype)
    return dict(zip(("value", "w", "x", "z"), (y, *torch.autograd.grad(y, leaves, probe)), strict=False))


# More responses than a program has, more poles, samples and parts of sums than a block has.
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize(("J", "H", "N", "L"), [(1, 1, 1, 1), (3, 2, 5, 7), (11, 1, 17, 130), (1, 1, 2, 4097)])
def test_vandermonde_equals_its_definition_with_gradients(J, H, N, L, centre):
    inputs = weights_and_poles(J, H, N)
    forms = (functools.partial(f, L=L, centre=centre) for f in (vandermonde_definition, triton_vandermonde))
    expected, got = (value_and_gradients(form, *inputs) for form in forms)
    for name, e in expected.items():
        torch.testing.assert_close(got[name], e, rtol=0, atol=1e-12 * e.abs().max().item(), msg=name)


@pytest.mark.parametrize(("L", "slow"), [(101, 1.0), (100_000, 1e-4)])
def test_float32_is_as_exact_as_the_definition(monkeypatch, L, slow):
    from s4nd.ops import _triton

    if L == 100_000:  # wider blocks: the interpreter's time goes by their number
        monkeypatch.setattr(_triton, "SAMPLES", 4096)
        monkeypatch.setattr(_triton, "STEP", 1024)
    w, x = (t.float() for t in weights_and_poles(2, 1, 3, slow=slow))
    exact = value_and_gradients(functools.partial(vandermonde_definition, L=L), w.double(), x.double())
    plain = value_and_gradients(functools.partial(vandermonde_definition, L=L), w, x)
    for name, got in value_and_gradients(functools.partial(triton_vandermonde, L=L), w, x).items():
        error, allowed = ((t - exact[name]).norm() / exact[name].norm() for t in (got, plain[name]))
        assert error <= 2 * allowed, (name, error, allowed)


def test_late_samples_keep_the_phase_of_poles_in_float64():
    """The phases, up to 4096 * 3 rad, have an error of 7e-4 in float32."""
    w, x = weights_and_poles(1, 2, 4, torch.float32)
    x = x * torch.tensor([1e-4, 1.0])
    exact = vandermonde_definition(w.double(), x, 4096)
    # Eight terms, each of a cosine and an exponential within two units in the last place and some products.
    bound = 64 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (triton_vandermonde(w, x, 4096) - exact).abs().max() < bound


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("J", "N", "L"), [(1, 1, 1), (11, 17, 130)])
def test_cauchy_equals_its_definition_with_gradients(J, N, L, per_head):
    inputs = arguments(J, 2, N, L, per_head=per_head)
    expected, got = (value_and_gradients(form, *inputs) for form in (cauchy_definition, triton_cauchy))
    for name, e in expected.items():
        # Beside the pole a quotient is 1e3 and its square 1e6, of terms of 1.
        torch.testing.assert_close(got[name], e, rtol=0, atol=1e-12 * e.abs().max().item(), msg=name)


@pytest.mark.parametrize("L", [7, 100_000])
def test_cauchy_in_float32_is_as_exact_as_the_definition(monkeypatch, L):
    from s4nd.ops import _triton_cauchy

    if L == 100_000:
        monkeypatch.setattr(_triton_cauchy, "SAMPLES", 4096)
        monkeypatch.setattr(_triton_cauchy, "STEP", 1024)
    inputs = [t.float() for t in arguments(2, 2, 3, L, per_head=True)]
    inputs[2][:, 0] += 1  # beside a pole a single number would decide by its luck in rounding
    exact = value_and_gradients(cauchy_definition, *(t.double() for t in inputs))
    plain, got = (value_and_gradients(form, *inputs) for form in (cauchy_definition, triton_cauchy))
    for name, e in exact.items():
        error, allowed = ((t - e).norm() / e.norm() for t in (got[name], plain[name]))
        assert error <= 2 * allowed, (name, error, allowed)


@pytest.mark.parametrize("form", ["vandermonde", "cauchy"])
def test_second_derivatives_and_batches_go_by_the_definition(form):
    if form == "vandermonde":
        inputs, form = weights_and_poles(2, 2, 3), functools.partial(triton_vandermonde, L=4)
    else:
        inputs, form = arguments(2, 2, 3, 4), triton_cauchy
    leaves = [t.requires_grad_() for t in inputs]
    if len(leaves) == 3:
        leaves[2].data[0] += 1  # differences need room beside a pole
    assert torch.autograd.gradgradcheck(form, leaves, fast_mode=True)
    w, *rest = inputs
    many = vmap(lambda w: form(w, *rest))(torch.stack([w, 2 * w]))
    torch.testing.assert_close(many[1], 2 * form(w, *rest), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["vandermonde", "cauchy"])
def test_operators_keep_torchs_contract_and_serve_compiled_calls(form):
    from s4nd.ops import _triton, _triton_cauchy

    if form == "vandermonde":
        inputs, operator = (*weights_and_poles(), 7, True), _triton._operator
        form = lambda w, x, L, centre: triton_vandermonde(w, x, L, centre=centre)  # noqa: E731
    else:
        inputs, operator, form = arguments(per_head=True), _triton_cauchy._operator, triton_cauchy
    leaves = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in inputs]
    torch.library.opcheck(operator, tuple(leaves))
    compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
    expected, got = form(*leaves), compiled(*leaves)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
    for e, g in zip(*(torch.autograd.grad(y.square().sum(), tensors) for y in (expected, got)), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12 * e.abs().max().item())


@pytest.mark.parametrize("algorithm", ["loops", "cauchy"])
def test_state_space_kernel_is_the_same_on_every_backend(algorithm):
    torch.manual_seed(0)
    H, N = 2, 4
    dt, P, B, C = torch.rand(H, dtype=F64) + 0.1, *(torch.randn(1, H, N, 2, dtype=F64) for _ in range(3))
    _, Lambda = weights_and_poles(1, H, N)
    torch_k, triton_k = (
        dplr_kernel(dt, Lambda, P, B[0], C, 33, algorithm=algorithm, backend=b) for b in ("torch", "triton")
    )
    torch.testing.assert_close(triton_k, torch_k, rtol=0, atol=1e-12 * torch_k.abs().max().item())


def test_small_run_is_right():
    assert dispatch.triton_refusal(CPU) is None


def test_auto_is_torch_on_a_cpu_even_where_the_interpreter_runs():
    assert dispatch.choose(CPU) == "torch"


@pytest.fixture
def forgetful():
    """A dispatch that has tried nothing yet, and forgets what is tried in the test."""
    for f in (dispatch._chosen, dispatch._triton_refusal):
        f.cache_clear()
    yield
    for f in (dispatch._chosen, dispatch._triton_refusal):
        f.cache_clear()


def test_without_interpreter_a_cpu_is_refused_with_the_reason(monkeypatch, forgetful):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match=r"backend='triton' cannot run on cpu: it needs a CUDA device.*'torch' or"):
        vandermonde(*weights_and_poles(), 4, backend="triton")
    with pytest.raises(BackendError, match="it needs a CUDA device"):
        cauchy(*arguments(), backend="triton")


def test_missing_package_is_said(monkeypatch, forgetful):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert dispatch.triton_refusal(CPU) == "the package triton is not installed"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda k: 1 / 0, "a small run failed: ZeroDivisionError"),
        (lambda k: 1.01 * k, "the value of a small {} product is wrong by"),
    ],
)
@pytest.mark.parametrize("product", ["vandermonde", "cauchy"])
def test_triton_that_does_not_run_or_runs_wrong_is_refused_and_said_once(
    monkeypatch, forgetful, caplog, product, fault, reason
):
    from s4nd.ops import _triton, _triton_cauchy

    module = _triton if product == "vandermonde" else _triton_cauchy
    right = getattr(module, f"{product}_triton")
    monkeypatch.setattr(module, f"{product}_triton", lambda *args: fault(right(*args)))
    monkeypatch.setattr(dispatch, "_small_run", lambda device, run=dispatch._small_run: run(CPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    caplog.set_level(logging.INFO, "s4nd")
    for _ in range(2):
        assert dispatch.choose(torch.device("cuda")) == "torch"
    (record,) = caplog.records
    assert "kernels on cuda:0 are computed by torch" in record.message
    assert reason.format(product) in record.message


def test_auto_is_triton_on_cuda_where_it_runs_and_says_so_once(monkeypatch, forgetful, caplog):
    monkeypatch.setattr(dispatch, "_small_run", lambda device, run=dispatch._small_run: run(CPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    caplog.set_level(logging.INFO, "s4nd")
    assert [dispatch.choose(torch.device("cuda", i)) for i in (0, 0)] == ["triton", "triton"]
    assert [r.message for r in caplog.records] == ["kernels on cuda:0 are computed by Triton"]


def test_compiled_code_takes_the_choice_as_a_constant(monkeypatch):
    """It is made by running programs, which cannot be traced."""

    def chosen(type_, index):
        with open(os.devnull):
            return "triton"

    monkeypatch.setattr(dispatch, "_chosen", chosen)
    w, x = weights_and_poles()
    compiled = torch.compile(lambda w, x: vandermonde(w, x, 4), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(w, x), triton_vandermonde(w, x, 4), rtol=1e-12, atol=0)
