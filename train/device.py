"""Where to compute."""

import torch


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU. ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    backend = getattr(torch, device.type, None)  # torch.cpu, torch.cuda, torch.mps, ...; None for "meta" and the like
    count = 0 if backend is None else backend.device_count()
    if (device.index or 0) >= count:
        raise ValueError(f"device={name} needs a GPU that is not there: {count} of type {device.type} found")
    return device
