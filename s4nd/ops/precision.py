"""Full precision where autocast would round, and double where there is some: phases of kernels and what is kept from them need
all their digits."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from s4nd.ops.constant import constant

WITHOUT_FLOAT64 = {"mps"}  # types of devices: Apple's GPUs


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast is off on a type of device; some, such as "meta", have none."""
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def wide(x: Tensor) -> Tensor:
    """x in the widest real dtype of its device."""
    return x.to(torch.promote_types(x.dtype, widest(x.device)))


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast rounds to where it is on, else None."""
    on = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


@constant  # the compiler of torch 2.7 cannot look into it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
