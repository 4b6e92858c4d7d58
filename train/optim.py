"""AdamW over the parameter groups of s4nd, and the learning rate of every step."""

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from s4nd import param_groups

from .config import OptimConfig, ScheduleConfig


def create_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW; each group keeps its weight decay, and its learning rate as a fixed ratio `lr_scale` to config.lr."""
    groups = param_groups(model, config.lr, config.weight_decay, ssm_lr=config.ssm_lr)
    # timm's schedulers compute one value and multiply it by lr_scale. Given different lr instead, they would warm up
    # from, and decay to, the same absolute value in every group.
    groups = [{**group, "lr": config.lr, "lr_scale": group["lr"] / config.lr} for group in groups]
    return create_optimizer_v2(groups, opt="adamw", lr=config.lr, weight_decay=config.weight_decay)


def create_schedule(
    optimizer: Optimizer, config: ScheduleConfig, epochs: int, steps_per_epoch: int
) -> CosineLRScheduler:
    """The schedule of one stage: call `step_update(t)` before optimizer step t = 0, 1, ... of the stage.

    lr(t) = lr t / W for t < W, then min_lr + (lr - min_lr) (1 + cos(pi (t - W) / (T - W))) / 2, times the group's
    lr_scale, with W and T the steps of the warm-up and of the stage. The last step is never of the warm-up.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(total - warmup, 2),  # timm warns of a single step, which is at lr either way
        lr_min=config.min_lr,
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )
