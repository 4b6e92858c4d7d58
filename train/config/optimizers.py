"""Which of timm's optimizers a run can have, and which of their arguments."""

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers
from timm.optim.kron import Kron
from torch import nn
from torch.optim import Optimizer

from .schema import OptimConfig

RESERVED = {
    "lr": "it is optim.lr",
    "weight_decay": "it is optim.weight_decay",
    "params": "they are the model's",
    "adamw_lr": "a rate of its own would not follow the schedule; set fallback_lr_scale",
    "maximize": "the loss is minimised",
    "differentiable": "steps are not differentiated",
    "capturable": "steps are not captured in CUDA graphs",
}
# Of two processes with divided weights these end in an error of DTensor, or elsewhere than one process, or go on otherwise
# from their saved moments.
NOT_SHARDED = ("adafactorbv", "adamp", "sgdp", "madgrad", "mars", "muon", "novograd")


def problems_of_optimizer(config: OptimConfig, parallel: str) -> Iterator[str]:
    """What cannot be honoured."""
    reason = _refusal(config.opt)
    if reason is None and parallel == "fsdp" and _class_of(config.opt) in {_class_of(name) for name in NOT_SHARDED}:
        reason = "its steps need whole weights and moments, and parallel=fsdp divides them"
    if reason is not None:
        yield f"optim.opt={config.opt!r} cannot be trained with: {reason}"
        return
    known = [name for name in inspect.signature(_class_of(config.opt)).parameters if name not in RESERVED]
    for key in config.args:
        if key in RESERVED:
            yield f"optim.args.{key} cannot be set: {RESERVED[key]}"
        elif key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{config.opt} takes {', '.join(known)}"
            yield f"optim.args.{key} is unknown; {hint}"
    if config.args:
        yield from _tried(config)


def new_optimizer(groups: list[dict], config: OptimConfig) -> Optimizer:
    """The optimizer of a config; as timm's factory, which passes over arguments in silence, momentum is 0.9 if not given."""
    args: dict[str, Any] = {"momentum": 0.9} if get_optimizer_info(config.opt).has_momentum else {}
    args |= {key: tuple(value) if isinstance(value, list) else value for key, value in config.args.items()}
    new: Any = get_optimizer_class(config.opt)
    return new(groups, lr=config.lr, weight_decay=config.weight_decay, **args)


def _refusal(name: str) -> str | None:
    if name not in list_optimizers():
        if name.startswith("lookahead_"):
            return "its slow weights are not among the moments that a state keeps"
        near = difflib.get_close_matches(name.lower(), map(str, list_optimizers()), n=3)
        return "timm has no optimizer of this name" + (f"; did you mean {' or '.join(near)}?" if near else "")
    info = get_optimizer_info(name)
    if info.second_order:
        return "it needs second derivatives, which steps do not make"
    if info.opt_class is Kron:
        return "a run that is continued from its saved state goes on otherwise than one that was not stopped"
    if isinstance(info.opt_class, str):
        return f"it is of the package {info.opt_class.partition('.')[0]}; take one of torch's or timm's own"
    return None


def _class_of(name: str) -> Any:
    return get_optimizer_class(name, bind_defaults=False)


def _tried(config: OptimConfig) -> Iterator[str]:
    """Arguments whose values are refused when the optimizer is made or makes a step."""
    param = nn.Parameter(torch.zeros(2, 2))
    param.grad = torch.ones(2, 2)
    try:
        with torch.compiler.set_stance("force_eager"):  # some compile their step
            new_optimizer([{"params": [param]}], config).step()
    except Exception as error:
        yield f"optim.args={config.args}: {config.opt} refuses it: {str(error) or type(error).__name__}"
