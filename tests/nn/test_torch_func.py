"""torch.func on layers and models, against loops over the same computations and finite differences, in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from tests.small import F64, assert_close, build, images

pytestmark = [
    # Torch's own rules of forward mode are scripted when they are first used, and some of vmap's are loops.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

NAMES = ["s4 layer", "s4d layer", "s4nd_iso_tiny", "s4nd_convnext_micro", "s4nd_vit_tiny_patch16_224"]
GRADIENT = 1e-10  # of the largest: a reordered sum, amplified by a few thousand samples of a mean

every_model = pytest.mark.parametrize("name", NAMES)
both_modes = pytest.mark.parametrize("training", [True, False])


def weights(model):
    return {key: p.detach() for key, p in model.named_parameters()}


def loss_of(model):
    """loss(weights, x (B, ...)), a number that depends on every output in another way."""

    def loss(values, x):
        y = functional_call(model, values, x)
        return (y * torch.linspace(0.5, 1.5, y[0].numel(), dtype=y.dtype).view(y.shape[1:])).square().mean()

    return loss


def directions(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype) for key, value in values.items()
    }


def stepped(values, direction, h):
    return {key: value + h * direction[key] for key, value in values.items()}


def finite_difference(f, values, direction, h=1e-4):
    """df/dh to fourth order: its error is h^4 f^(5) / 30 and the rounding of f over h, some 1e-11."""
    near, far = ((f(stepped(values, direction, k * h)) - f(stepped(values, direction, -k * h))) / k for k in (1, 2))
    return (4 * near - far) / (6 * h)


@every_model
def test_ensemble_of_stacked_models_answers_as_its_members(name):
    """The base model was evaluated before: what it kept is not the members', nor theirs its own afterwards."""
    base, members = build(name), [build(name, seed) for seed in (1, 2, 3)]
    x = images(name)
    with torch.no_grad():
        own = base(x)
        expected = [member(x) for member in members]
        stacked = stack_module_state(members)
        for _ in range(2):
            found = vmap(lambda p, b: functional_call(base, (p, b), x))(*stacked)
            for y, e in zip(found, expected, strict=True):
                assert_close(y, e)
            assert_close(base(x), own)
        for p in stacked[0].values():
            p.data.mul_(1.1)
        found = vmap(lambda p, b: functional_call(base, (p, b), x))(*stacked)
        for i, (y, member) in enumerate(zip(found, members, strict=True)):
            member.load_state_dict({**member.state_dict(), **{key: p[i] for key, p in stacked[0].items()}})
            assert_close(y, member(x))
        assert_close(base(x), own)


@every_model
def test_ensemble_on_a_skeleton_without_numbers_answers_as_its_members(name):
    """As torch's tutorial on ensembles does it: the base model is on the meta device."""
    members, x = [build(name, seed) for seed in (1, 2)], images(name)
    skeleton = copy.deepcopy(members[0]).to("meta")
    with torch.no_grad():
        expected = [member(x) for member in members]
        found = vmap(lambda p, b: functional_call(skeleton, (p, b), x))(*stack_module_state(members))
    for y, e in zip(found, expected, strict=True):
        assert_close(y, e)


@both_modes
@every_model
def test_gradient_is_that_of_autograd(name, training):
    model, x = build(name).train(training), images(name)
    values = weights(model)
    got = grad(loss_of(model))(values, x)
    leaves = {key: value.clone().requires_grad_() for key, value in values.items()}
    wanted = torch.autograd.grad(loss_of(model)(leaves, x), list(leaves.values()))
    for key, w in zip(leaves, wanted, strict=True):
        assert_close(got[key], w, GRADIENT)


@both_modes
@every_model
def test_per_sample_gradients_are_those_of_a_loop(name, training):
    model, x = build(name).train(training), images(name, batch=3)
    values, loss = weights(model), loss_of(model)
    with torch.no_grad():
        model.eval()(x)
        model.train(training)
    got = vmap(grad(lambda v, u: loss(v, u[None])), in_dims=(None, 0))(values, x)
    for i, u in enumerate(x):
        wanted = grad(loss)(values, u[None])
        for key in values:
            assert_close(got[key][i], wanted[key], GRADIENT)


@every_model
def test_vmap_over_the_input_is_a_batch(name):
    model, x = build(name), images(name, batch=3)
    with torch.no_grad():
        expected = model(x)
        assert_close(vmap(lambda u: model(u[None])[0])(x), expected)
    model.train()
    assert_close(vmap(lambda u: model(u[None])[0], randomness="same")(x), expected)


@every_model
def test_jvp_over_the_input_is_the_finite_difference(name):
    model, x = build(name), images(name)
    v = images(name, 0).flip(-1)
    h = 1e-4
    with torch.no_grad():
        wanted = finite_difference(lambda values: model(values["x"]), {"x": x}, {"x": v}, h)
        y, expected = jvp(model, (x,), (v,))[1], wanted
    assert_close(y, expected, 1e-8)
    y = jvp(model, (x,), (v,))[1]  # the parameters would get gradients here
    assert_close(y.detach(), expected, 1e-8)


@both_modes
@every_model
def test_jvp_over_the_parameters_is_the_finite_difference(name, training):
    model, x = build(name), images(name)
    with torch.no_grad():
        model(x)  # what is kept has no tangent
        values = weights(model.train(training))
        v = directions(values)
        f = lambda p: functional_call(model, p, x)  # noqa: E731
        wanted = finite_difference(f, values, v)
        y, got = jvp(f, (values,), (v,))
        assert_close(y, f(values))
        assert_close(got, wanted, 1e-7)
        assert got.abs().max() > 1e-3 * y.abs().max()


@every_model
def test_jacobians_agree_and_are_the_finite_difference(name):
    """Of a few numbers of every parameter of a kernel, of the outputs' sum over places: few enough to be held."""
    model, x = build(name), images(name)
    values = weights(model)
    layer = next(key for key in values if "kernels.0" in key).rpartition(".")[0]
    few = {key: value.flatten()[:2].clone() for key, value in values.items() if layer in key or key == "D"}

    def outputs(some):
        p = dict(values)
        for key, v in some.items():
            p[key] = torch.cat([v, values[key].flatten()[2:]]).view_as(values[key])
        return functional_call(model, p, x).flatten(2).sum(-1) if x.shape[1] == 4 else functional_call(model, p, x)

    forward, reverse = jacfwd(outputs)(few), jacrev(outputs)(few)
    largest = max(J.abs().max() for J in reverse.values())
    for key in few:
        torch.testing.assert_close(forward[key], reverse[key], rtol=0, atol=GRADIENT * largest.item())
    v = directions(few)
    with torch.no_grad():
        wanted = finite_difference(outputs, few, v)
    got = sum(torch.tensordot(reverse[key], v[key], dims=v[key].ndim) for key in few)
    assert_close(got, wanted, 1e-7)


@every_model
def test_input_jacobians_agree(name):
    model, x = build(name), images(name, batch=1)
    weight = torch.randn(3, dtype=F64)

    def outputs(few):
        y = model(torch.cat([few, x.flatten()[2:]]).view_as(x)).flatten()
        return y[:3] * weight

    few = x.flatten()[:2]
    forward, reverse = jacfwd(outputs)(few), jacrev(outputs)(few)
    assert_close(forward.detach(), reverse.detach(), GRADIENT)
    assert reverse.abs().max() > 0


@both_modes
@pytest.mark.parametrize("way", ["forward over reverse", "reverse over reverse"])
@every_model
def test_hessian_vector_product_is_the_finite_difference_of_the_gradient(name, way, training):
    model, x = build(name).train(training), images(name)
    values, loss = weights(model), loss_of(model)
    v = directions(values)
    gradient = lambda p: grad(loss)(p, x)  # noqa: E731
    if way == "forward over reverse":
        got = jvp(gradient, (values,), (v,))[1]
    else:
        got = grad(lambda p: sum((g * v[key]).sum() for key, g in gradient(p).items()))(values)
    flat = lambda g: torch.cat([g[key].flatten() for key in values])  # noqa: E731
    wanted = finite_difference(lambda p: flat(gradient(p)), values, v)
    assert_close(flat(got), wanted, 1e-6)


def test_hessian_of_a_layer_is_symmetric():
    layer, x = build("s4d layer"), images("s4d layer", batch=1)
    values, loss = weights(layer), loss_of(layer)
    one = "kernels.0.log_dt"
    H = hessian(lambda p: loss({**values, one: p}, x))(values[one])
    assert H.abs().max() > 0
    assert_close(H, H.mT, GRADIENT)


@every_model
def test_dual_numbers_carry_the_tangent(name):
    model, x = build(name), images(name)
    v = directions({"x": x})["x"]
    with torch.no_grad():
        model(x)
        wanted = jvp(copy.deepcopy(model).train(), (x,), (v,))[1]
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, v)))
        assert_close(y.detach(), model(x).detach())
        assert_close(tangent.detach(), wanted, GRADIENT)
    with torch.no_grad():
        assert_close(model(x), y.detach())


@every_model
def test_dual_numbers_as_parameters_carry_the_tangent(name):
    """As torch's tutorial on forward mode does it: parameters become plain attributes with a tangent."""
    model, x = build(name), images(name)
    values = weights(model)
    v = directions(values)
    with torch.no_grad():
        expected = model(x)
        wanted = finite_difference(lambda p: functional_call(model, p, x), values, v)
    twin = copy.deepcopy(model)
    with torch.no_grad(), forward_ad.dual_level():
        for key, value in values.items():
            path, _, last = key.rpartition(".")
            module = twin.get_submodule(path)
            delattr(module, last)
            setattr(module, last, forward_ad.make_dual(value, v[key]))
        for _ in range(2):
            y, tangent = forward_ad.unpack_dual(twin(x))
            assert_close(y, expected)
            assert tangent is not None
            assert_close(tangent, wanted, 1e-7)
    with torch.no_grad():
        assert_close(model(x), expected)


@every_model
def test_transforms_leave_nothing_in_the_model(name):
    """Evaluated inside of each, then evaluated alone and changed."""
    model, x = build(name), images(name)
    values = weights(model)
    others = {key: 1.1 * value for key, value in values.items()}
    with torch.no_grad():
        expected = build(name)(x)
        for use in (
            lambda: jvp(lambda p: functional_call(model, p, x), (others,), (directions(others),)),
            lambda: vmap(lambda p: functional_call(model, p, x))({key: p[None] for key, p in others.items()}),
            lambda: grad(loss_of(model))(others, x),
            lambda: vjp(lambda p: functional_call(model, p, x), others),
            lambda: jvp(model, (x,), (x,)),
        ):
            use()
            for _ in range(2):
                y = model(x)
                assert type(y) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(y)
                assert_close(y, expected)
    assert all(p.grad is None and isinstance(p, nn.Parameter) for p in model.parameters())
    copy.deepcopy(model)
