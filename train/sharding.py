"""FSDP2: weights, gradients and the optimizer's moments divided among the processes; a block is put together while it is used.

What is saved is always whole, so that a run's files do not depend on how it was divided (torch.distributed.checkpoint).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

BLOCKS = ("blocks", "layers")  # timm's names of what repeats
WHOLE = StateDictOptions(full_state_dict=True)


def shard(model: nn.Module, world_size: int, device: torch.device) -> None:
    """Divide a model, in place; its optimizer must be made after.

    Raises:
        ValueError: torch adds the gradients of the processes up on this device where it is to average them.
    """
    mesh = init_device_mesh(device.type, (world_size,))
    if not _averages_gradients(mesh, device):
        raise ValueError(
            f"parallel=fsdp: torch {torch.__version__} adds the gradients of the processes up on {device.type} where it is to "
            "average them; take a newer torch, or parallel=ddp"
        )
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in BLOCKS and isinstance(module, nn.Sequential | nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _averages_gradients(mesh: DeviceMesh, device: torch.device) -> bool:
    """Whether the gradient of a divided model is the mean over the processes, which with torch 2.7 on a CPU it is not; adaptive
    optimizers would hide it, but for their clipping."""
    probe = nn.utils.skip_init(nn.Linear, 1, 1, bias=False, device=device)  # draws no random numbers
    fully_shard(probe, mesh=mesh)
    probe(torch.ones(1, 1, device=device)).sum().backward()
    return bool(whole(cast("Tensor", probe.weight.grad)).item() == 1.0)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The state dict, put together where it is divided; all processes must ask for it."""
    return get_model_state_dict(model, options=WHOLE) if is_sharded(model) else model.state_dict()


def whole_moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """As `whole_weights`, of the optimizer."""
    return get_optimizer_state_dict(model, optimizer, options=WHOLE) if is_sharded(model) else optimizer.state_dict()


def load_moments(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `whole_moments`."""
    if is_sharded(model):
        set_optimizer_state_dict(model, optimizer, state, options=WHOLE)
    else:
        optimizer.load_state_dict(state)


def own(x: Tensor) -> Tensor:
    """This process's shard of a tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """A tensor put together; all processes must ask for it."""
    return x.full_tensor() if isinstance(x, DTensor) else x
