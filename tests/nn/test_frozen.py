"""`frozen` against what it promises: kernels are computed once inside it, and at its end all is as before."""

import contextlib
import copy

import pytest
import torch

import s4nd
from s4nd.nn.kernels import KERNELS
from s4nd.nn.kernels.base import SSMKernel
from tests.small import assert_close, build, fresh, images, layers

NAMES = ["s4 layer", "s4d layer", "s4nd_iso_tiny", "s4nd_convnext_micro", "s4nd_vit_tiny_patch16_224"]


@pytest.fixture
def calls(monkeypatch):
    """Grows with every kernel that is computed."""
    made = []
    for cls in {c for kernel in KERNELS.values() for c in kernel.__mro__ if "_kernel" in vars(c)} - {SSMKernel}:
        compute = vars(cls)["_kernel"]
        monkeypatch.setattr(cls, "_kernel", lambda self, L, *a, _f=compute, **k: made.append(L) or _f(self, L, *a, **k))
    return made


def write(model):
    """As nothing but a comparison of numbers could tell."""
    for p in model.parameters():
        p.detach().numpy()[...] *= 1.1


@torch.no_grad()
def expected(model, name, x):
    return fresh(model, lambda: build(name))(x)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_each_size_are_computed_once_inside(name, calls):
    model, xs = build(name), [images(name, number) for number in (0, 1)]
    answers = [expected(model, name, x) for x in xs]
    with torch.no_grad(), s4nd.frozen(model):
        calls.clear()
        for x, y in zip(xs, answers, strict=True):
            assert_close(model(x), y)
        assert calls
        calls.clear()
        for x, y in zip(xs, answers, strict=True):
            assert_close(model(x), y)
        assert not calls


@torch.no_grad()
def test_promise_keeps_kernels_where_weights_cannot_be_compared(calls, monkeypatch):
    """As on a GPU, where a comparison would wait for the device."""
    monkeypatch.setattr(s4nd.S4ND, "_numbers", lambda _: None)
    model, x = build("s4 layer"), images("s4 layer")
    counts = []
    for context in (contextlib.nullcontext(), s4nd.frozen(model), contextlib.nullcontext()):
        with context:
            for _ in range(2):
                calls.clear()
                model(x)
                counts.append(bool(calls))
    assert counts == [True, True, True, False, True, True]


@pytest.mark.parametrize("name", NAMES)
def test_weights_changed_before_and_after_are_seen(name):
    """Something was kept before, for other weights; and something is kept inside."""
    model, x = build(name), images(name)
    with torch.no_grad():
        model(x)
        write(model)
        with s4nd.frozen(model):
            for _ in range(2):
                assert_close(model(x), expected(model, name, x))
        write(model)
        for _ in range(2):
            assert_close(model(x), expected(model, name, x))
        with s4nd.frozen(model):  # anew: another promise, of other weights
            for _ in range(2):
                assert_close(model(x), expected(model, name, x))


@pytest.mark.parametrize("name", NAMES)
def test_inner_one_ends_without_ending_the_outer_one(name, calls):
    model, x = build(name), images(name)
    answer = expected(model, name, x)
    part = next(iter(layers(model).values()))
    with torch.no_grad(), s4nd.frozen(model):
        model(x)
        with s4nd.frozen(model), s4nd.frozen(part):
            assert_close(model(x), answer)
        calls.clear()
        assert_close(model(x), answer)
        assert not calls
    write(model)
    with torch.no_grad():
        assert_close(model(x), expected(model, name, x))


@pytest.mark.parametrize("name", NAMES)
def test_exception_ends_it(name):
    model, x = build(name), images(name)
    with torch.no_grad():
        with pytest.raises(KeyError, match="mine"), s4nd.frozen(model):
            model(x)
            raise KeyError("mine")
        write(model)
        for _ in range(2):
            assert_close(model(x), expected(model, name, x))


@pytest.mark.parametrize("name", NAMES)
def test_copies_made_inside_are_not_frozen(name):
    model, x = build(name), images(name)
    with torch.no_grad(), s4nd.frozen(model):
        answer = model(x)
        twin = copy.deepcopy(model)
        assert_close(twin(x), answer)
        write(twin)
        for _ in range(2):
            assert_close(twin(x), expected(twin, name, x))
            assert_close(model(x), answer)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_given_model_is_frozen(name):
    model, other, x = build(name), build(name), images(name)
    with torch.no_grad(), s4nd.frozen(model):
        other(x)
        write(other)
        for _ in range(2):
            assert_close(other(x), expected(other, name, x))


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_and_gradients_inside_are_as_outside(name):
    """A kept kernel would cut the parameters off."""
    model, x = build(name), images(name)
    parameters = list(model.parameters())
    twin = build(name)
    wanted = torch.autograd.grad(twin(x).square().sum(), list(twin.parameters()))
    with s4nd.frozen(model):
        with torch.no_grad():
            model(x)
        for training in (False, True):
            got = torch.autograd.grad(model.train(training)(x).square().sum(), parameters)
            for g, w in zip(got, wanted, strict=True):
                assert_close(g, w, 1e-10)
        steps = torch.optim.SGD(parameters, lr=0.1)  # in training mode the promise has no meaning: weights move
        for _ in range(2):
            steps.zero_grad()
            model(x).square().mean().backward()
            steps.step()
        moved = model(x).detach()
        assert_close(moved, expected(model, name, x), 1e-10)
    with torch.no_grad():
        assert_close(model.eval()(x), expected(model, name, x))


@pytest.mark.parametrize("name", NAMES)
def test_input_of_a_frozen_model_gets_its_gradient(name):
    model, x = build(name), images(name)
    wanted = torch.autograd.grad(build(name)(x.requires_grad_()).square().sum(), x)[0]
    model.requires_grad_(False)
    with s4nd.frozen(model):
        for _ in range(2):
            got = torch.autograd.grad(model(x).square().sum(), x)[0]
            assert_close(got, wanted, 1e-10)


def test_kernels_kept_in_inference_mode_take_part_in_a_later_backward_pass():
    layer, u = s4nd.S4ND(3, d_state=8).eval().requires_grad_(False), torch.randn(1, 3, 9, 8, requires_grad=True)
    with torch.inference_mode():
        for axis, n in enumerate((9, 8)):
            layer.kernel_lags(axis, n)
    got = torch.autograd.grad(layer(u).square().sum(), u)[0]
    wanted = torch.autograd.grad(copy.deepcopy(layer).train()(u).square().sum(), u)[0]
    assert_close(got, wanted, 1e-5)


def test_sampling_that_changes_inside_is_seen():
    """The promise is of the weights; a bandlimit or a trained grid is a setting."""
    torch.manual_seed(0)
    layer, u = s4nd.S4ND(3, d_state=8, kernel="s4d", base_size=8, dt_min=0.3).eval(), torch.randn(1, 3, 9, 8)
    with s4nd.frozen(layer), torch.no_grad():
        before = layer(u)
        for change in (dict(bandlimit=0.2), dict(base_size=5), dict(l_max=2), dict(align="edge")):
            for name, value in change.items():
                setattr(layer, name, value)
            y = layer(u)
            assert not torch.allclose(y, before)
            torch.testing.assert_close(y, copy.deepcopy(layer).train()(u))
            before = y
