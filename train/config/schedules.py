"""Which of timm's schedules a stage can have, and which of their settings each uses."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise

from .schema import Config, ScheduleConfig

COMMON = {"sched", "warmup_epochs", "warmup_lr"}
NEEDED = {  # by schedule, without which it is not determined
    "cosine": (),
    "tanh": (),
    "poly": ("decay_rate",),
    "step": ("decay_epochs", "decay_rate"),
    "multistep": ("decay_milestones", "decay_rate"),
    "wsd": ("decay_epochs",),
    "rsqrt": ("decay_epochs",),
    "constant": (),
}
TO_MIN_LR = ("cosine", "tanh", "poly", "wsd", "rsqrt")  # these end at min_lr, and may stay there
REFUSED = {
    "plateau": "it follows a score of each epoch, and what it remembers is not kept when a run is continued",
    "none": "say constant",
}


def problems_of_schedule(config: Config) -> Iterator[str]:
    """What cannot be honoured."""
    schedule = config.schedule
    if schedule.sched not in NEEDED:
        reason = f": {REFUSED[schedule.sched]}" if schedule.sched in REFUSED else ""
        yield f"schedule.sched must be one of {', '.join(NEEDED)}, got {schedule.sched!r}{reason}"
        return
    needed, default = NEEDED[schedule.sched], ScheduleConfig()
    used = COMMON | {*needed} | ({"min_lr", "cooldown_epochs"} if schedule.sched in TO_MIN_LR else set())
    for key in (f.name for f in fields(ScheduleConfig)):
        value = getattr(schedule, key)
        if key in needed and value is None:
            yield f"schedule.sched={schedule.sched} needs schedule.{key}"
        if key not in used and value != getattr(default, key):
            yield f"schedule.{key} is not of schedule.sched={schedule.sched}, got {value}"
    for key in ("min_lr", "warmup_lr"):
        if not getattr(schedule, key) <= config.optim.lr:
            yield f"schedule.{key} must be in [0, {config.optim.lr}], got {getattr(schedule, key)}"
    if schedule.warmup_lr and not schedule.warmup_epochs:
        yield "schedule.warmup_lr is where the warm-up begins: it needs schedule.warmup_epochs"
    if schedule.sched == "rsqrt" and not schedule.warmup_epochs:
        yield "schedule.sched=rsqrt falls from the end of the warm-up as its inverse root: it needs schedule.warmup_epochs"
    yield from _of_time(config)


def _of_time(config: Config) -> Iterator[str]:
    """What does not fit into a stage."""
    schedule = config.schedule
    milestones = schedule.decay_milestones or []
    for i, stage in enumerate(config.stages):
        left = stage.epochs - schedule.warmup_epochs - schedule.cooldown_epochs
        if left <= 0 or (schedule.sched in ("wsd", "rsqrt") and (schedule.decay_epochs or 0) > left):
            keys = ("warmup_epochs", "cooldown_epochs") if left <= 0 else ("decay_epochs",)
            said = " + ".join(f"schedule.{key}={getattr(schedule, key):g}" for key in keys if getattr(schedule, key))
            room = f"less than stages.{i}.epochs={stage.epochs}" if left <= 0 else f"at most {left:g} in stage {i}"
            yield f"{said} must be {room}"
        if milestones and not schedule.warmup_epochs < min(milestones) <= max(milestones) < stage.epochs:
            span = f"after the warm-up and before stages.{i}.epochs={stage.epochs}"
            yield f"schedule.decay_milestones must be {span}, got {milestones}"
    if schedule.decay_milestones == [] or any(a >= b for a, b in pairwise(milestones)):
        yield f"schedule.decay_milestones must be increasing numbers of epochs, got {milestones}"
