"""What the optimizer is told of a parameter, said by the module that owns it.

A module with a method `optim_settings()` says it of its own parameters by their names: those of a state-space model train at
a small learning rate and without weight decay (Gu et al., 2022, arXiv:2206.11893, section 5). Nothing is written on tensors,
which sharding, moving, loading and plain assignment replace.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

# What parametrizations and pruning make of the parameter `name`.
REPLACED = re.compile(r"(?:parametrizations\.)?(?P<name>\w+?)(?:\.original\d*|_orig)")


@dataclass(frozen=True)
class Settings:
    """The largest learning rate and the weight decay that a parameter takes; None: as the others."""

    lr: float | None = None
    weight_decay: float | None = None


def settings_of(model: nn.Module) -> dict[str, Settings]:
    """By the model's own names of its parameters; those of which no module says anything are left out."""
    names = {id(param): name for name, param in model.named_parameters()}
    found: dict[str, Settings] = {}
    for module in model.modules():
        say = getattr(module, "optim_settings", None)
        said = say() if callable(say) else {}
        for name, param in module.named_parameters() if said else ():
            replaced = REPLACED.fullmatch(name)
            own = said.get(replaced["name"] if replaced and name not in said else name)
            if own is not None:
                found.setdefault(names[id(param)], own)
    return found


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters whose module says weight_decay=0: what timm's method of this name returns."""
    return {name for name, settings in settings_of(model).items() if settings.weight_decay == 0}


def param_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, *, ssm_lr: float | None = None, skip: Iterable[str] = ()
) -> list[dict]:
    """Groups for any torch optimizer, one for each pair of learning rate and weight decay in use.

    Parameters with settings follow them: lr is the smaller of theirs and `lr`, or `ssm_lr` if given. Of the others, biases
    and norm parameters (at most one axis) and the names in `skip` (those that the `no_weight_decay()` of the model, or of one
    inside it, returns are added) take no decay. Frozen parameters are left out.

    Returns:
        Dicts with "params", "lr", "weight_decay".
    """
    said, skip = settings_of(model), set(skip) | _skipped(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        own = said.get(name, Settings())
        own_lr = lr if own.lr is None else min(lr, own.lr) if ssm_lr is None else ssm_lr
        own_decay = own.weight_decay
        if own_decay is None:
            own_decay = 0.0 if param.ndim <= 1 or name in skip else weight_decay
        groups.setdefault((own_lr, own_decay), []).append(param)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _skipped(model: nn.Module) -> set[str]:
    """What timm's models say, under the names that the parameters have in a model that wraps one of them."""
    said = [(prefix, getattr(module, "no_weight_decay", None)) for prefix, module in model.named_modules()]
    return {f"{prefix}.{name}".lstrip(".") for prefix, say in said if callable(say) for name in say()}
