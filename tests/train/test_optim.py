"""Optimizer groups and schedule against what the modules say and the schedule's closed form."""

import math

import pytest
import timm

import s4nd.models  # noqa: F401
from s4nd.train.config import OptimConfig, ScheduleConfig
from s4nd.train.optim import create_optimizer, create_schedule


@pytest.fixture
def model():
    return timm.create_model("s4nd_iso_tiny", embed_dim=8, depth=1, img_size=8)


def rates(optimizer) -> dict[str, float]:
    """Learning rate by group: `ssm` for the group of log_dt, `base` for the others'."""
    base = {group["lr"] for group in optimizer.param_groups if group["lr_scale"] == 1}
    ssm = {group["lr"] for group in optimizer.param_groups if group["lr_scale"] != 1}
    return {"base": base.pop() if len(base) == 1 else base, "ssm": ssm.pop() if len(ssm) == 1 else ssm}


def lr_and_decay_of(model, optimizer, ending):
    wanted = {id(p) for name, p in model.named_parameters() if name.endswith(ending)}
    groups = [g for g in optimizer.param_groups if wanted & {id(p) for p in g["params"]}]
    assert len(groups) == 1
    return groups[0]["lr"] * groups[0]["lr_scale"], groups[0]["weight_decay"]


def test_every_parameter_is_in_one_group(model):
    optimizer = create_optimizer(model, OptimConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_groups_follow_what_modules_say(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.05))
    assert lr_and_decay_of(model, optimizer, "log_dt") == (pytest.approx(1e-3), 0.0)
    assert lr_and_decay_of(model, optimizer, "proj.weight") == (pytest.approx(0.01), 0.05)
    assert lr_and_decay_of(model, optimizer, "norm.bias") == (pytest.approx(0.01), 0.0)


def test_ssm_lr_overrides_what_modules_say(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01, ssm_lr=2e-4))
    assert lr_and_decay_of(model, optimizer, "log_dt")[0] == pytest.approx(2e-4)


def test_schedule_is_its_closed_form_and_groups_keep_their_ratio(model):
    lr, low, epochs, steps, W = 0.01, 1e-4, 5, 10, 20
    optimizer = create_optimizer(model, OptimConfig(lr=lr))
    schedule = create_schedule(optimizer, ScheduleConfig(warmup_epochs=2, min_lr=low), epochs, steps)
    for t in range(epochs * steps):
        schedule.step_update(t)
        cosine = low + (lr - low) * (1 + math.cos(math.pi * (t - W) / (epochs * steps - W))) / 2
        expected = lr * t / W if t < W else cosine
        assert rates(optimizer) == {"base": pytest.approx(expected), "ssm": pytest.approx(0.1 * expected)}


def test_no_group_starts_above_its_own_rate(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01))
    create_schedule(optimizer, ScheduleConfig(warmup_epochs=1), 2, 10)
    assert rates(optimizer) == {"base": 0.0, "ssm": 0.0}


def test_single_step_is_made_at_the_full_rate(model):
    optimizer = create_optimizer(model, OptimConfig(lr=0.01))
    create_schedule(optimizer, ScheduleConfig(warmup_epochs=0.9), 1, 1).step_update(0)
    assert rates(optimizer)["base"] == 0.01
