"""A model that was evaluated before its weights changed, against a fresh one that is given the present weights."""

import copy
import ctypes
import pickle

import pytest
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from s4nd import set_bandlimit, set_base_size
from tests.small import assert_close, build, fresh, images, layers

MODELS = ["s4 layer", "s4d layer", "s4nd_iso_tiny", "s4nd_convnext_micro", "s4nd_vit_tiny_patch16_224"]
SEEN = 1  # the number of the images' size: not the trained one, which would hide a changed base_size

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def answer(model, x: Tensor) -> Tensor:
    """In the dtype of the model: kernels stay in full precision when all else is in half."""
    return model(x.to(min((p.dtype for p in model.parameters()), key=lambda dtype: dtype.itemsize)))


def moved(p: Tensor) -> Tensor:
    return (1.1 * p + 0.05 * torch.randn_like(p)).detach()


def change(model: nn.Module) -> None:
    """As training in another place would."""
    for p in model.parameters():
        p.data.copy_(moved(p))


def kernels(model: nn.Module) -> list[nn.Module]:
    return [kernel for layer in layers(model).values() for kernel in layer.kernels]


def each_parameter(write):
    """The way to change weights that calls write(parameter, its new value) on each."""

    def way(model, x):
        yield model
        for p in model.parameters():
            write(p, moved(p))
        yield model

    return way


def in_no_grad(write):
    return each_parameter(torch.no_grad()(write))


def data_assigned(model, x):
    yield model
    for _ in range(2):
        for p in model.parameters():
            value = moved(p)
            p.data = p.data.new_empty(0)  # the old memory is free to be used again, for the new numbers
            p.data = value.clone()
        yield model


def by_numpy(p, value):
    p.detach().numpy()[...] = value.numpy()


def by_memmove(p, value):
    assert p.is_contiguous() and value.is_contiguous()
    ctypes.memmove(p.data_ptr(), value.data_ptr(), value.numel() * value.element_size())


def by_dlpack(p, value):
    torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(p.detach())).copy_(value)


def by_storage(p, value):
    p.untyped_storage().copy_(value.untyped_storage())


def by_swapped_tensors(p, value):
    torch.utils.swap_tensors(p, nn.Parameter(value))


@torch.inference_mode()
def by_inference_mode(p, value):
    p.copy_(value)


def memory_set_to_zero(model, x):
    yield model
    for kernel in kernels(model):
        ctypes.memset(kernel.C.data_ptr(), 0, kernel.C.numel() * kernel.C.element_size() // 2)
    yield model


def views_made_before(model, x):
    views = [p.view(-1) for p in model.parameters()]
    detached = [p.detach().view(-1) for p in model.parameters()]
    yield model
    with torch.no_grad():
        for view in views:
            view.mul_(1.1)
    yield model
    for view in detached:
        view.mul_(1.1)
    yield model


def values_of_the_state_dict(model, x):
    values = [value for value in model.state_dict().values() if value.is_floating_point()]
    yield model
    for value in values:
        value.copy_(moved(value))
    yield model


def one_vector_for_all(model, x):
    yield model
    vector = moved(parameters_to_vector(model.parameters()))
    vector_to_parameters(vector, model.parameters())
    yield model
    vector.mul_(1.1)  # the parameters are views of it
    yield model


def new_parameters(model, x):
    yield model
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(moved(p)))
    yield model


@torch.inference_mode()
def _made_in_inference_mode(model):
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(moved(p), requires_grad=False))


def parameters_of_inference_mode(model, x):
    yield model
    _made_in_inference_mode(model)
    yield model
    with torch.inference_mode():
        for p in model.parameters():
            p.mul_(1.1)
    yield model


def another_kernel(model, x):
    yield model
    other = copy.deepcopy(model)
    change(other)
    for name, layer in layers(model).items():
        layer.kernels[0] = other.get_submodule(name).kernels[0]
    yield model
    for name, layer in layers(model).items():
        layer.kernels = other.get_submodule(name).kernels
    change(model)
    yield model


def drawn_anew(model, x):
    yield model
    for layer in layers(model).values():
        layer.reset_parameters()
    yield model


def load(**how):
    def way(model, x):
        yield model
        other = copy.deepcopy(model)
        change(other)
        model.load_state_dict(other.state_dict(), **how)
        yield model

    return way


def swapped_and_restored(model, x):
    """torch_ema's store, copy_to, restore, within one period of evaluation."""
    averages = [moved(p) for p in model.parameters()]
    yield model
    for _ in range(2):
        stored = [p.clone() for p in model.parameters()]
        for p, average in zip(model.parameters(), averages, strict=True):
            p.data.copy_(average.data)
        yield model
        for p, kept in zip(model.parameters(), stored, strict=True):
            p.data.copy_(kept.data)
        yield model


def pointers_swapped_and_restored(model, x):
    others = [moved(p) for p in model.parameters()]
    yield model
    for _ in range(3):
        for i, p in enumerate(model.parameters()):
            p.data, others[i] = others[i], p.data
        yield model


def average(make, update):
    """Of a model whose weights change: `make` copies it after it was evaluated."""

    def way(model, x):
        with torch.no_grad():
            model(x)
        averaged = make(model)
        yield averaged.module
        for _ in range(2):  # the first update of AveragedModel copies, the second one averages
            change(model)
            update(averaged, model)
            yield averaged.module

    return way


def timm_ema(kind, **options):
    return average(lambda model: kind(model, decay=0.5, **options), lambda ema, model: ema.update(model))


def averaged_model(**options):
    return average(lambda model: AveragedModel(model, **options).eval(), lambda a, model: a.update_parameters(model))


def optimizer(make):
    """Steps with gradients, everything in evaluation mode."""

    def way(model, x):
        yield model
        steps = make(model.parameters())
        for _ in range(2):
            steps.zero_grad()
            model(x).square().mean().backward()
            steps.step()
            yield model

    return way


def training_steps(model, x):
    yield model
    steps = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        steps.zero_grad()
        model.train()(x).square().mean().backward()
        steps.step()
        model.eval()
        yield model


def pruned(model, x):
    yield model
    parts = [(kernel, "C") for kernel in kernels(model)]
    parts += [(layer, "D") for layer in layers(model).values() if layer.D is not None]
    for module, name in parts:
        prune.random_unstructured(module, name, 0.5)
    yield model
    for module, name in parts:
        mask = getattr(module, f"{name}_mask")
        mask.copy_(1 - mask)
    yield model
    for module, name in parts:
        getattr(module, f"{name}_orig").data.mul_(1.1)
    yield model
    for module, name in parts:
        prune.remove(module, name)
    change(model)
    yield model


class LowRank(nn.Module):
    """W + a b, of rank 1."""

    def __init__(self, W: Tensor):
        super().__init__()
        self.a, self.b = nn.Parameter(W.new_zeros(len(W), 1)), nn.Parameter(torch.randn_like(W[:1].reshape(1, -1)))

    def forward(self, W: Tensor) -> Tensor:
        return W + (self.a @ self.b).view_as(W)


class Shrunk(nn.Module):
    """c s W, s a buffer and c a number."""

    def __init__(self, W: Tensor):
        super().__init__()
        self.register_buffer("s", W.new_ones(()))
        self.c = 1.0

    def forward(self, W: Tensor) -> Tensor:
        return self.c * self.s * W


def parametrized(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    found = []
    for module in [*kernels(model), *layers(model).values()]:
        for name in ("C", "log_dt", "D"):
            if getattr(module, name, None) is not None:
                found.append(kind(getattr(module, name)))
                parametrize.register_parametrization(module, name, found[-1])
    return found


def low_rank_factors(model, x):
    yield model
    factors = parametrized(model.requires_grad_(False), LowRank)
    for factor in factors:
        nn.init.normal_(factor.a, std=0.1)
    yield model
    for factor in factors:
        factor.a.data.mul_(1.5)
    yield model
    steps = torch.optim.SGD([p for factor in factors for p in factor.parameters()], lr=0.1)
    model(x).square().mean().backward()
    steps.step()
    yield model


def decay_through_a_buffer(model, x):
    yield model
    decays = parametrized(model, Shrunk)
    for factor in (0.9, 0.8):
        for decay in decays:
            decay.s.fill_(factor)
        yield model
    for decay in decays:
        decay.s = torch.full_like(decay.s, 0.7)
    yield model


def decay_by_a_number(model, x):
    decays = parametrized(model, Shrunk)
    yield model
    for decay in decays:
        decay.c = 0.9
    yield model


def weight_norm(model, x):
    yield model
    for kernel in kernels(model):
        parametrizations.weight_norm(kernel, "C")
        kernel.parametrizations.C.original0.data.mul_(1.5)
    yield model
    for kernel in kernels(model):
        kernel.parametrizations.C.original1.data[0].mul_(-1)
    yield model


def weight_norm_by_hooks(model, x):
    yield model
    for kernel in kernels(model):
        torch.nn.utils.weight_norm(kernel, "C")
        kernel.C_g.data.mul_(1.5)
    yield model
    for kernel in kernels(model):
        kernel.C_v.data[0].mul_(-1)
    yield model


def copies(duplicate):
    def way(model, x):
        yield model
        twin = duplicate(model)
        change(twin)
        yield twin
        yield model
        change(model)
        yield model
        yield twin

    return way


def to_dtypes(*dtypes):
    def way(model, x):
        yield model
        for dtype in dtypes:
            yield model.to(dtype)
        change(model.double())
        yield model

    return way


def to_channels_last(model, x):
    yield model
    model.to(memory_format=torch.channels_last)
    change(model)
    yield model


def setting(name, *values):
    def way(model, x):
        yield model
        for value in values:
            for layer in layers(model).values():
                setattr(layer, name, (value,) * layer.ndim if name in ("base_size", "l_max") else value)
            yield model

    return way


def settings_of_all_layers(model, x):
    yield model
    set_bandlimit(model, 0.4)
    yield model
    set_base_size(model, 11)
    yield model
    set_base_size(model, 23, rescale=True)  # now a bandlimit cuts elsewhere
    change(model)
    yield model


def algorithm(model, x):
    """It changes no answer: what must be seen is what changes with it."""
    yield model
    for layer in layers(model).values():
        layer.algorithm = "fft"
    change(model)
    yield model


def discretisation(model, x):
    if any(kernel.name == "s4" for kernel in kernels(model)):
        pytest.skip("s4 has one discretisation")
    yield model
    for disc in ("bilinear", "dirac"):
        for kernel in kernels(model):
            kernel.disc = disc
        yield model


WAYS = {
    ".data.mul_": each_parameter(lambda p, value: p.data.mul_(1.1)),
    ".data.copy_": each_parameter(lambda p, value: p.data.copy_(value)),
    ".data =": data_assigned,
    "copy_": in_no_grad(lambda p, value: p.copy_(value)),
    "lerp_": in_no_grad(lambda p, value: p.lerp_(value, 0.5)),
    "add_": in_no_grad(lambda p, value: p.add_(value, alpha=0.1)),
    "set_": in_no_grad(lambda p, value: p.set_(value)),
    "numpy": each_parameter(by_numpy),
    "memmove": each_parameter(by_memmove),
    "memset": memory_set_to_zero,
    "dlpack": each_parameter(by_dlpack),
    "storage": each_parameter(by_storage),
    "swap_tensors": each_parameter(by_swapped_tensors),
    "inference mode": each_parameter(by_inference_mode),
    "parameters made in inference mode": parameters_of_inference_mode,
    "views": views_made_before,
    "values of the state dict": values_of_the_state_dict,
    "vector_to_parameters": one_vector_for_all,
    "setattr": new_parameters,
    "another kernel": another_kernel,
    "reset_parameters": drawn_anew,
    "load_state_dict": load(),
    "load_state_dict, assign": load(assign=True),
    "swap and restore": swapped_and_restored,
    "swap and restore of pointers": pointers_swapped_and_restored,
    "ModelEmaV2": timm_ema(timm.utils.ModelEmaV2),
    "ModelEmaV3": timm_ema(timm.utils.ModelEmaV3),
    "ModelEmaV3, loop": timm_ema(timm.utils.ModelEmaV3, foreach=False),
    "AveragedModel": averaged_model(),
    "AveragedModel, buffers": averaged_model(use_buffers=True),
    "AveragedModel, EMA": averaged_model(multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "SGD": optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1, foreach=False)),
    "SGD, foreach": optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1, foreach=True)),
    "AdamW, fused": optimizer(lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True)),
    "training": training_steps,
    "prune": pruned,
    "low rank": low_rank_factors,
    "decay in a buffer": decay_through_a_buffer,
    "decay by a number": decay_by_a_number,
    "weight_norm": weight_norm,
    "weight_norm, hooks": weight_norm_by_hooks,
    "deepcopy": copies(copy.deepcopy),
    "pickle": copies(lambda model: pickle.loads(pickle.dumps(model))),
    "half": to_dtypes(torch.float16, torch.float32),
    "bfloat16": to_dtypes(torch.bfloat16, torch.float64),
    "float": to_dtypes(torch.float32),
    "channels last": to_channels_last,
    "bandlimit": setting("bandlimit", 0.3, None),
    "l_max": setting("l_max", 2, 3),
    "base_size": setting("base_size", 7, 3),
    "align": setting("align", "edge"),
    "set_bandlimit, set_base_size": settings_of_all_layers,
    "algorithm": algorithm,
    "disc": discretisation,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_answer_is_that_of_the_present_weights(way, name):
    """A way yields the model after every change: it is evaluated, and evaluated again, where something may be kept."""
    model, x, before = build(name), images(name, SEEN), None
    for present in WAYS[way](model, x):
        with torch.no_grad():
            expected = answer(fresh(present, lambda: build(name)).eval(), x)
        for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
            with mode():
                assert_close(answer(present, x), expected)
        now = expected.double()
        assert before is None or (now - before).abs().max() > 1e-9 * before.abs().max()  # there is something to see
        before = now


@torch.no_grad()
@pytest.mark.parametrize("name", ["s4 layer", "s4d layer"])
def test_change_of_any_one_tensor_is_seen(name):
    """The skip among them, which no kernel follows from."""
    model, x = build(name), images(name, SEEN)
    before = answer(model, x)
    assert "D" in dict(model.named_parameters())
    for tensor, p in model.named_parameters():
        p.numpy()[...] *= 1.1
        now = answer(model, x)
        assert_close(now, answer(fresh(model, lambda: build(name)).eval(), x))
        assert (now - before).abs().max() > 1e-9 * before.abs().max(), tensor
        before = now


def stepped(layer, x: Tensor) -> Tensor:
    """The answer sample by sample."""
    x, y, state = x.to(layer.D.dtype), [], None
    for u in x.unbind(-1):
        out, state = layer.step(u, state, n=x.shape[-1])
        y.append(out)
    return torch.stack(y, dim=-1)


# A recurrence cannot end a kernel, and hooks run when a module is called, which a step does not do.
WAYS_OF_STEPS = [way for way in WAYS if way not in ("l_max", "prune", "weight_norm, hooks")]


@pytest.mark.parametrize("name", ["causal s4 layer", "causal s4d layer"])
@pytest.mark.parametrize("way", WAYS_OF_STEPS)
def test_step_is_that_of_the_present_weights(way, name):
    """In evaluation a step is discretised once: for the weights that it is of."""
    layer, x = build(name), images(name, SEEN)
    for present in WAYS[way](layer, x):
        with torch.no_grad():
            expected = stepped(fresh(present, lambda: build(name)).eval(), x)
            for _ in range(2):
                assert_close(stepped(present, x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_each_size_answers_for_the_present_weights_however_sizes_and_changes_alternate(name):
    model, xs = build(name), [images(name, number) for number in (0, 1, 2)]
    first = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for size, what in zip(
            (0, 1, 0, 2, 1, 0, 0, 1, 2), ("", "", "new", "", "new", "", "first", "", ""), strict=True
        ):
            if what == "new":
                change(model)
            elif what == "first":
                for p, kept in zip(model.parameters(), first, strict=True):
                    p.data.copy_(kept)
            expected = fresh(model, lambda: build(name))(xs[size])
            for _ in range(2):
                assert_close(model(xs[size]), expected)


@pytest.mark.parametrize("name", MODELS)
def test_autocast_and_full_precision_do_not_answer_for_each_other(name):
    model, x = build(name, dtype=torch.float32), images(name, SEEN, dtype=torch.float32)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with torch.no_grad():
        for _ in range(2):
            one = fresh(model, lambda: build(name, dtype=torch.float32))
            other = fresh(model, lambda: build(name, dtype=torch.float32))
            with autocast:
                half = one(x)
            for _ in range(2):
                assert_close(model(x), other(x))
                with autocast:
                    assert_close(model(x), half)
            change(model)


@pytest.mark.parametrize("name", MODELS)
def test_model_reparameterized_after_a_change_is_that_of_the_present_weights(name):
    model, x = build(name), images(name, SEEN)
    with torch.no_grad():
        model(x)
        for p in model.parameters():
            p.data.mul_(1.1)
        expected = fresh(model, lambda: build(name))(x)
        fused = (
            model.fuse(x.shape[2:]) if name.endswith("layer") else timm.utils.reparameterize_model(model, inplace=True)
        )
        assert_close(fused(x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_hook_on_a_kernel_counts_from_its_registration_to_its_removal(name):
    model, x = build(name), images(name, SEEN)

    def halved(kernel, inputs, k):
        return 0.5 * k

    with torch.no_grad():
        before = model(x)
        model(x)
        hooks = [kernel.register_forward_hook(halved) for kernel in kernels(model)]
        other = fresh(model, lambda: build(name))
        for kernel in kernels(other):
            kernel.register_forward_hook(halved)
        expected = other(x)
        assert (expected - before).abs().max() > 1e-6 * before.abs().max()
        for _ in range(2):
            assert_close(model(x), expected)
        for hook in hooks:
            hook.remove()
        for _ in range(2):
            assert_close(model(x), before)


@pytest.mark.parametrize("name", ["s4 layer", "s4d layer"])
def test_pooling_set_after_an_evaluation_is_used(name):
    layer, x = build(name), images(name, SEEN)
    with torch.no_grad():
        plain = layer(x)
        for pool in ((1, 2), (2, 3), (1, 1)):
            layer.pool = pool
            for _ in range(2):
                assert_close(layer(x), nn.functional.avg_pool2d(plain, pool))


@pytest.mark.parametrize("name", MODELS)
def test_functional_call_answers_for_what_it_is_given_and_leaves_nothing_behind(name):
    model, x = build(name), images(name, SEEN)
    given = [{key: moved(p) for key, p in model.named_parameters()} for _ in range(2)]
    with torch.no_grad():
        own = fresh(model, lambda: build(name))(x)
        assert_close(model(x), own)
        for values in [*given, *given]:
            other = build(name)
            other.load_state_dict({**other.state_dict(), **values})
            expected = other(x)
            assert (expected - own).abs().max() > 1e-6 * own.abs().max()
            for _ in range(2):
                assert_close(torch.func.functional_call(model, values, x), expected)
            assert_close(model(x), own)


def replica(model: nn.Module, value) -> nn.Module:
    """What torch.nn.parallel.replicate makes for a device: modules without parameters, tensors as plain attributes."""
    made = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, one in made.items():
        one._former_parameters = {}
        for key, child in module._modules.items():
            one._modules[key] = made.get(child)
        for key, p in module._parameters.items():
            if p is None:
                one._parameters[key] = None
            else:
                one._former_parameters[key] = value(p)
                setattr(one, key, one._former_parameters[key])
    return made[model]


@pytest.mark.parametrize("name", MODELS)
def test_replica_of_data_parallel_answers_for_its_own_tensors(name):
    model, x = build(name), images(name, SEEN)
    with torch.no_grad():
        own = fresh(model, lambda: build(name))(x)
        assert_close(model(x), own)
        for _ in range(2):  # replicas are made anew for every batch, between which an optimizer steps
            one = replica(model, moved)
            expected = fresh(one, lambda: build(name))(x)
            for _ in range(2):
                assert_close(one(x), expected)
                assert_close(model(x), own)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_replica_of_data_parallel_passes_gradients_to_the_parameters(name, training):
    model, x = build(name), images(name, SEEN)
    with torch.no_grad():
        model(x)
    parameters = list(model.train(training).parameters())
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    got = torch.autograd.grad(replica(model, torch.clone)(x).square().sum(), parameters)
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e)
