"""Full precision where autocast would round: phases of kernels and what is kept from them need all their digits."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast is off on a type of device; some, such as "meta", have none."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast rounds to where it is on, else None."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None
