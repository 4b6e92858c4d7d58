"""What the optimizer is told of each parameter, against the table of the reference's settings."""

import copy
import pickle

import pytest
import torch
from torch import nn

from s4nd import S4ND, no_weight_decay, param_groups

SSM = {"log_dt", "log_A_real", "A_imag", "B", "P"}


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


@pytest.mark.parametrize(
    "twin", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), emptied, assigned]
)
def test_ssm_parameters_train_slowly_and_without_decay_in_copies_too(twin):
    m = twin(model())
    got = settings(m, param_groups(m, lr=1e-2, weight_decay=0.05))
    assert set(got) == {name for name, _ in m.named_parameters()}
    for name, value in got.items():
        if name.split(".")[-1] in SSM:
            assert value == (1e-3, 0.0), name
        elif name in ("1.bias", "2.weight", "2.bias"):
            assert value == (1e-2, 0.0), name
        else:  # C, D, the convolution's weight
            assert value == (1e-2, 0.05), name


def test_small_learning_rate_is_not_raised_for_ssm_parameters():
    m = model()
    assert {lr for lr, _ in settings(m, param_groups(m, lr=1e-4)).values()} == {1e-4}


def test_ssm_lr_replaces_the_tag():
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


def test_no_weight_decay_names_the_tagged_parameters():
    assert no_weight_decay(S4ND(4, ndim=1)) == {f"kernels.0.{name}" for name in SSM}
