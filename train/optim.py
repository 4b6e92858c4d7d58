"""The optimizer over the parameter groups of s4nd, and the learning rate of every step."""

from typing import Any

from timm.models import group_parameters
from timm.optim import Muon
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from s4nd import param_groups
from s4nd.nn.optim_settings import settings_of

from .config import OptimConfig, ScheduleConfig
from .config.optimizers import new_optimizer


def create_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer; each group keeps its weight decay, and its learning rate as a fixed ratio `lr_scale` to config.lr.

    With a layer decay d the rate of a parameter, a state-space one's own rate too, is multiplied by d^(layers above its own).

    Raises:
        ValueError: a layer decay for a model that does not say its layers.
    """
    groups = param_groups(model, config.lr, config.weight_decay, ssm_lr=config.ssm_lr)
    # timm's schedulers compute one value and multiply it by lr_scale. Given different lr instead, they would warm up
    # from, and decay to, the same absolute value in every group.
    groups = [{**group, "lr": config.lr, "lr_scale": group["lr"] / config.lr} for group in groups]
    if config.layer_decay is not None:
        scales = layer_scales(model, config.layer_decay)
        groups = _split(groups, {id(p): {"lr_scale": scales[name]} for name, p in model.named_parameters()})
    optimizer = new_optimizer(groups, config)
    if isinstance(optimizer, Muon):  # a matrix of poles is no map: orthogonal steps would mix them
        said = settings_of(model)
        own = {id(p): {"use_fallback": name in said} for name, p in model.named_parameters()}
        optimizer = new_optimizer(_split(groups, own), config)
    return optimizer


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """decay^(layers above) of every parameter, by timm's `group_matcher`; what it does not name is of the top layer.

    Raises:
        ValueError: the model has no `group_matcher`, or it knows one layer only.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"optim.layer_decay: {type(model).__name__} does not say its layers: it has no group_matcher")
    layers = group_parameters(model, matcher(coarse=False), reverse=True)
    top = max(layers.values())
    if top == 0:
        raise ValueError(f"optim.layer_decay: all parameters of {type(model).__name__} are of one layer")
    return {name: decay ** (top - layers.get(name, top)) for name, _ in model.named_parameters()}


def _split(groups: list[dict], said: dict[int, dict]) -> list[dict]:
    """Groups of which each has one saying about its parameters, by their id: a scale multiplies, the rest is added."""
    split: list[dict] = []
    for group in groups:
        parts: dict[tuple, list] = {}
        for param in group["params"]:
            parts.setdefault(tuple(said[id(param)].items()), []).append(param)
        for items, params in parts.items():
            more = dict(items)
            scale = group["lr_scale"] * more.pop("lr_scale", 1.0)
            split.append({**group, **more, "params": params, "lr_scale": scale})
    return split


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> Scheduler:
    """timm's schedule of one stage: call `step_update(t)` before optimizer step t = 0, 1, ... of the stage.

    With W, C and E the steps of the warm-up, of the cool-down and of decay_epochs, T those left of the stage, and s = t - W,
    lr(t) = warmup_lr + (lr - warmup_lr) t / W for t < W; then, times the group's lr_scale,

    cosine      min_lr + (lr - min_lr) (1 + cos(pi s / T)) / 2
    tanh        min_lr + (lr - min_lr) (1 - tanh(10 s / T - 7)) / 2
    poly        min_lr + (lr - min_lr) (1 - s / T)^decay_rate
    step        lr decay_rate^floor(s / E)
    multistep   lr decay_rate^(milestones at or before t)
    wsd         lr, and in the last E of the T steps min_lr + (lr - min_lr) (1 - sqrt(f)), f from 0 to 1
    rsqrt       r = max(lr / sqrt(1 + s / W), min_lr), and in the last E of the T steps min_lr + (r - min_lr) (1 - f)
    constant    lr

    and min_lr for the C steps of the cool-down. The last step is never of the warm-up.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    cooldown = min(round(config.cooldown_epochs * steps_per_epoch), total - warmup - 1)
    left = max(total - warmup - cooldown, 2)  # timm warns of a single step, which is at lr either way
    decay = min(max(1, round((config.decay_epochs or 1) * steps_per_epoch)), left)
    # timm's own count is from the end of the warm-up, and its milestones come a step early.
    milestones = [round(m * steps_per_epoch) - warmup + 1 for m in config.decay_milestones or ()]
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=left,
        warmup_epochs=warmup,
        warmup_lr=config.warmup_lr,
        warmup_prefix=True,
        min_lr=config.min_lr,
        decay_rate=1.0 if config.decay_rate is None else config.decay_rate,
        decay_epochs=decay,
        decay_milestones=milestones,
        step_on_epochs=False,
        updates_per_epoch=1,  # everything is counted in steps
    )
    return schedule
