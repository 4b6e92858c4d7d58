"""What the optimizer is told of each parameter, against the reference's settings, whatever replaced its tensor."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from s4nd import S4ND, no_weight_decay, param_groups
from s4nd.nn.kernels import KERNELS
from s4nd.nn.optim_settings import Settings, settings_of

SSM = {"log_dt", "log_A_real", "A_imag", "B", "P"}
SLOW = Settings(lr=1e-3, weight_decay=0.0)


def settings(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def model() -> nn.Module:
    return nn.Sequential(S4ND(4, d_state=8), nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4))


def emptied(m: nn.Module) -> nn.Module:
    return m.to(device="meta").to_empty(device="cpu")


def assigned(m: nn.Module) -> nn.Module:
    m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True)
    return m


def replaced(m: nn.Module) -> nn.Module:
    for module in m.modules():
        for name, param in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(param.detach().clone()))
    return m


def parametrised(m: nn.Module) -> nn.Module:
    for kernel in m[0].kernels:
        for name, _ in list(kernel.named_parameters()):
            parametrize.register_parametrization(kernel, name, nn.Identity())
    return m


def pruned(m: nn.Module) -> nn.Module:
    for kernel in m[0].kernels:
        for name, _ in list(kernel.named_parameters()):
            prune.identity(kernel, name)
    return m


@pytest.fixture
def mesh(tmp_path):
    """A process group of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def check_table(m: nn.Module, group_of: list[dict]) -> None:
    got = settings(m, group_of)
    assert set(got) == {name for name, _ in m.named_parameters()}
    for name, value in got.items():
        words = set(name.replace("_orig", "").split("."))
        if words & SSM:
            assert value == (1e-3, 0.0), name
        elif "2" in words or "bias" in words:
            assert value == (1e-2, 0.0), name
        else:  # C, D, the convolution's weight
            assert value == (1e-2, 0.05), name


TWINS = {
    "itself": lambda m: m,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "to_empty": emptied,
    "assign": assigned,
    "setattr": replaced,
    "parametrize": parametrised,
    "prune": pruned,
    "compile": torch.compile,
}


@pytest.mark.parametrize("twin", TWINS)
def test_ssm_parameters_train_slowly_and_without_decay_whatever_replaced_them(twin):
    m = TWINS[twin](model())
    check_table(m, param_groups(m, lr=1e-2, weight_decay=0.05))


@pytest.mark.parametrize("wrapper", ["fully_shard", "distribute_module", "DDP"])
def test_ssm_parameters_train_slowly_and_without_decay_when_distributed(wrapper, mesh):
    m = model()
    if wrapper == "fully_shard":
        from torch.distributed.fsdp import fully_shard

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            m = fully_shard(m, mesh=mesh)
    elif wrapper == "distribute_module":
        from torch.distributed.tensor import distribute_module

        m = distribute_module(m, mesh)
    else:
        m = nn.parallel.DistributedDataParallel(m)
    assert wrapper == "DDP" or all(type(p).__name__ == "DTensor" for p in m.parameters())
    check_table(m, param_groups(m, lr=1e-2, weight_decay=0.05))
    assert len(no_weight_decay(m)) == 2 * len(SSM)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_speak_for_all_parameters_but_C(name):
    kernel = KERNELS[name](2, 4)
    assert settings_of(kernel) == {n: SLOW for n, _ in kernel.named_parameters() if n != "C"}


def test_parameter_of_a_parametrization_itself_is_trained_as_others():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1))

        def forward(self, x):
            return x * self.weight

    kernel = KERNELS["s4d"](2, 4)
    parametrize.register_parametrization(kernel, "A_imag", Scaled())
    said = settings_of(kernel)
    assert said["parametrizations.A_imag.original"] == SLOW
    assert "parametrizations.A_imag.0.weight" not in said


def test_shared_parameter_is_counted_once():
    first, second = S4ND(4, d_state=8), S4ND(4, d_state=8)
    second.kernels[0].B = first.kernels[0].B
    m = nn.Sequential(first, second)
    grouped = [id(p) for g in param_groups(m, lr=1e-2) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in m.parameters())
    assert settings_of(m)["0.kernels.0.B"] == SLOW and "1.kernels.0.B" not in settings_of(m)


def test_names_that_a_wrapped_model_excludes_are_not_decayed():
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))

        def no_weight_decay(self):
            return {"token"}

    for wrapped, name in ((WithToken(), "token"), (torch.compile(WithToken()), "_orig_mod.token")):
        assert settings(wrapped, param_groups(wrapped, lr=1e-2, weight_decay=0.05)) == {name: (1e-2, 0.0)}


def test_small_learning_rate_is_not_raised_for_ssm_parameters():
    m = model()
    assert {lr for lr, _ in settings(m, param_groups(m, lr=1e-4)).values()} == {1e-4}


def test_ssm_lr_replaces_that_of_the_settings():
    m = model()
    assert settings(m, param_groups(m, lr=1e-2, ssm_lr=5e-3))["0.kernels.0.log_dt"] == (5e-3, 0.0)


def test_frozen_and_skipped_parameters_are_left_out_or_not_decayed():
    m = model()
    m[0].D.requires_grad_(False)
    got = settings(m, param_groups(m, lr=1e-2, weight_decay=0.05, skip=["1.weight"]))
    assert "0.D" not in got
    assert got["1.weight"] == (1e-2, 0.0)


def test_groups_train_in_a_torch_optimizer():
    """Each parameter whose gradient is well above AdamW's eps of 1e-8, below which its steps vanish."""
    torch.manual_seed(0)
    m = model()
    optimizer = torch.optim.AdamW(param_groups(m, lr=1e-2, weight_decay=0.05))
    before = {name: p.clone() for name, p in m.named_parameters()}
    y = m(torch.randn(2, 4, 5, 5))
    (y * torch.randn_like(y)).sum().backward()  # a mean square would not see what lies before the norm
    optimizer.step()
    moved = {name: not torch.equal(p, before[name]) for name, p in m.named_parameters() if p.grad.abs().max() > 1e-6}
    assert moved.keys() >= {f"0.kernels.0.{name}" for name in (*SSM, "C")} and all(moved.values())


def test_no_weight_decay_names_the_parameters_of_state_space_models():
    assert no_weight_decay(S4ND(4, ndim=1)) == {f"kernels.0.{name}" for name in SSM}
