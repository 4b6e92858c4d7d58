"""Schedules against their closed forms, and settings that a schedule does not have against the door."""

import itertools
import math

import pytest
import torch

from s4nd.train.config import ScheduleConfig, load_config
from s4nd.train.optim import create_schedule

LR, LOW, EPOCHS, U = 0.01, 0.0005, 8, 10  # steps per epoch


def rates(**settings):
    """Of every step of a stage, by the parameters' lr_scale; the group of half the scale keeps its half."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr_scale": scale} for p, scale in zip(params, (1.0, 0.5), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=LR)
    schedule, seen = create_schedule(optimizer, ScheduleConfig(**settings), EPOCHS, U), []
    for t in range(EPOCHS * U):
        schedule.step_update(t)
        one, half = (group["lr"] for group in optimizer.param_groups)
        assert half == pytest.approx(one / 2)
        seen.append(one)
    return seen


W, C = 2 * U, U
T = EPOCHS * U - W - C
FORMS = {
    "cosine": ({}, lambda s: LOW + (LR - LOW) * (1 + math.cos(math.pi * s / T)) / 2),
    "tanh": ({}, lambda s: LOW + (LR - LOW) * (1 - math.tanh(10 * s / T - 7)) / 2),
    "poly": ({"decay_rate": 0.9}, lambda s: LOW + (LR - LOW) * (1 - s / T) ** 0.9),
    "wsd": (
        {"decay_epochs": 2.0},
        lambda s: LOW + (LR - LOW) * (1 - math.sqrt(max(0, s - T + 2 * U) / (2 * U))),
    ),
    "rsqrt": (
        {"decay_epochs": 2.0},
        lambda s: LOW + (LR / math.sqrt(1 + s / W) - LOW) * (1 - max(0, s - T + 2 * U) / (2 * U)),
    ),
}
FALLS = {
    "step": ({"decay_epochs": 1.5, "decay_rate": 0.5}, lambda t: LR * 0.5 ** ((t - W) // (1.5 * U))),
    "multistep": (
        {"decay_milestones": [3.0, 6.5], "decay_rate": 0.2},
        lambda t: LR * 0.2 ** ((t >= 3 * U) + (t >= 6.5 * U)),
    ),
    "constant": ({}, lambda t: LR),
}


@pytest.mark.parametrize("sched", FORMS)
def test_schedule_that_falls_to_the_minimum_is_its_closed_form(sched):
    settings, form = FORMS[sched]
    begin = 0.002
    seen = rates(sched=sched, warmup_epochs=2, warmup_lr=begin, min_lr=LOW, cooldown_epochs=1, **settings)
    expected = [begin + (LR - begin) * t / W for t in range(W)] + [form(s) for s in range(T)] + [LOW] * C
    assert seen == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sched", FALLS)
def test_schedule_of_falls_is_its_closed_form(sched):
    settings, form = FALLS[sched]
    seen = rates(sched=sched, warmup_epochs=2, **settings)
    expected = [LR * t / W for t in range(W)] + [form(t) for t in range(W, EPOCHS * U)]
    assert seen == pytest.approx(expected, rel=1e-9)


def test_every_schedule_of_the_door_is_tested_here():
    from s4nd.train.config.schedules import NEEDED

    assert FORMS.keys() | FALLS.keys() == NEEDED.keys()


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("stages: [{size: 8, epochs: 8}]\noptim: {lr: 0.01}")

    def load(sched, **settings):
        settings = {**(FORMS | FALLS).get(sched, ({},))[0], **settings}
        return load_config(path, [f"schedule.sched={sched}", *(f"schedule.{k}={v}" for k, v in settings.items())])

    return load


USED_BY = {
    "min_lr": (0.001, {*FORMS}),
    "cooldown_epochs": (1, {*FORMS}),
    "decay_rate": (0.3, {"poly", "step", "multistep"}),
    "decay_epochs": (1, {"step", "wsd", "rsqrt"}),
    "decay_milestones": ([3, 4], {"multistep"}),
}


@pytest.mark.parametrize("sched, key", [*itertools.product([*FORMS, *FALLS], USED_BY)])
def test_setting_of_another_schedule_is_refused(load, sched, key):
    value, users = USED_BY[key]
    if sched in users:
        assert getattr(load(sched, warmup_epochs=1, **{key: value}).schedule, key) == value
    else:
        with pytest.raises(ValueError, match=f"schedule.{key} is not of schedule.sched={sched}, got"):
            load(sched, warmup_epochs=1, **{key: value})


@pytest.mark.parametrize(
    "sched, settings, message",
    [
        ("plateau", {}, r"must be one of cosine, .*, got 'plateau': it follows a score of each epoch"),
        ("none", {}, "got 'none': say constant"),
        ("linear", {}, "got 'linear'$"),
        ("poly", {"decay_rate": "null"}, "schedule.sched=poly needs schedule.decay_rate"),
        ("step", {"decay_epochs": "null"}, "schedule.sched=step needs schedule.decay_epochs"),
        ("multistep", {"decay_milestones": "null"}, "schedule.sched=multistep needs schedule.decay_milestones"),
        ("multistep", {"decay_milestones": "[]"}, "decay_milestones must be increasing numbers of epochs"),
        ("multistep", {"decay_milestones": "[4, 4]"}, "decay_milestones must be increasing numbers of epochs"),
        ("multistep", {"decay_milestones": "[4, 8]"}, r"must be after the warm-up and before stages.0.epochs=8"),
        ("multistep", {"decay_milestones": "[1, 2]", "warmup_epochs": 1}, "must be after the warm-up and before"),
        ("step", {"decay_rate": 0}, "schedule.decay_rate must be positive, got 0"),
        ("wsd", {"decay_epochs": 9}, "schedule.decay_epochs=9 must be at most 8 in stage 0"),
        ("wsd", {"decay_epochs": 6, "warmup_epochs": 2, "cooldown_epochs": 1}, "must be at most 5 in stage 0"),
        ("rsqrt", {}, "rsqrt falls from the end of the warm-up .* it needs schedule.warmup_epochs"),
        ("cosine", {"warmup_epochs": 4, "cooldown_epochs": 4}, "less than stages.0.epochs=8"),
        ("cosine", {"warmup_lr": 0.001}, "schedule.warmup_lr is where the warm-up begins"),
        ("cosine", {"warmup_lr": 0.02, "warmup_epochs": 1}, r"schedule.warmup_lr must be in \[0, 0.01\], got 0.02"),
        ("cosine", {"min_lr": 0.02}, r"schedule.min_lr must be in \[0, 0.01\], got 0.02"),
    ],
)
def test_schedule_that_cannot_be_is_refused(load, sched, settings, message):
    with pytest.raises(ValueError, match=message):
        load(sched, **settings)
