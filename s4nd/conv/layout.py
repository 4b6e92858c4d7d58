"""Where a convolution's output lies in memory."""

import torch
from torch import Tensor


def like_output(u: Tensor, C: int) -> Tensor:
    """Uninitialised (B, C, H, *axes) for a signal (B, H, *axes): with one kernel per head in the memory layout of u, which a
    network keeps from layer to layer (torch's channels_last), else contiguous."""
    return torch.empty_like(u)[:, None] if C == 1 else u.new_empty(len(u), C, *u.shape[1:])
