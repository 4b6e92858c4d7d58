"""Blocks of heads whose intermediate tensors stay in a CPU's cache.

The contractions of this package expand their input: every head has a matrix of all modes at all samples. Written out for all
heads it goes through memory several times, and a CPU pays for every new page of it; block by block it does not leave the
cache, and computing it again in the backward pass costs less than having kept it.
"""

from collections.abc import Iterator

import torch

# Elements of one matrix of a block: 2 MiB in float64.
ELEMENTS = 2**18


def head_blocks(H: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Slices of range(H), of as many heads as have ELEMENTS together, `elements` each; all heads at once on other devices."""
    size = max(1, ELEMENTS // max(1, elements)) if device.type == "cpu" else H
    return (slice(start, start + size) for start in range(0, H, size))
