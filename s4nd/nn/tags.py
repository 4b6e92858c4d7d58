"""Special treatment of a parameter by the optimizer, written on the parameter itself.

The state-space parameters dt, A, B, P train at a small learning rate and without weight decay (Gu et al., 2022,
arXiv:2206.11893, section 5); `mark` says so where the parameter is made, `param_groups` and `no_weight_decay` read it.
"""

from collections.abc import Iterable

from torch import nn

SSM_LR = 1e-3


def mark(param: nn.Parameter, *, lr: float | None = None, weight_decay: float | None = None) -> nn.Parameter:
    """Tag a parameter with the largest learning rate and the weight decay that it takes; None: as the others."""
    param._optim = {"lr": lr, "weight_decay": weight_decay}
    return param


def tag(param: nn.Parameter) -> dict[str, float | None]:
    """The tag of a parameter, {} without one."""
    return getattr(param, "_optim", {})


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters whose tag says weight_decay=0: what timm's method of this name returns."""
    return {name for name, param in model.named_parameters() if tag(param).get("weight_decay") == 0}


def param_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, *, ssm_lr: float | None = None, skip: Iterable[str] = ()
) -> list[dict]:
    """Groups for any torch optimizer, one for each pair of learning rate and weight decay in use.

    Tagged parameters follow their tag: lr is the smaller of the tag's and `lr`, or `ssm_lr` if given. Of the others, biases
    and norm parameters (at most one axis) and the names in `skip` (those that the model's own `no_weight_decay()` returns
    are added) take no decay. Frozen parameters are left out.

    Returns:
        Dicts with "params", "lr", "weight_decay".
    """
    skip = set(skip) | set(model.no_weight_decay() if hasattr(model, "no_weight_decay") else ())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        own = tag(param)
        own_lr = lr if own.get("lr") is None else min(lr, own["lr"]) if ssm_lr is None else ssm_lr
        own_decay = own.get("weight_decay")
        if own_decay is None:
            own_decay = 0.0 if param.ndim <= 1 or name in skip else weight_decay
        groups.setdefault((own_lr, own_decay), []).append(param)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
