"""Blocks of heads whose intermediate tensors stay in a CPU's cache.

The contractions of this package expand their input: every head has a matrix of all modes at all samples. Written out for all
heads it goes through memory several times, and a CPU pays for every new page of it; block by block it does not leave the
cache, and computing it again in the backward pass costs less than having kept it.
"""

from collections.abc import Iterator

import torch

# Elements of one matrix of a block: 4 MiB in float32.
ELEMENTS = 2**20


def head_blocks(H: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Slices of range(H), even ones, of heads that have at most ELEMENTS together, `elements` each; all heads at once on
    devices that are no CPU."""
    blocks = max(1, -(-H * elements // ELEMENTS)) if device.type == "cpu" else 1
    size = max(1, -(-H // blocks))
    return (slice(start, min(start + size, H)) for start in range(0, H, size))


def node_blocks(L: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Slices of range(L), of nodes that have at most ELEMENTS together, `elements` each; 64 times as many if not on a CPU."""
    most = ELEMENTS * (1 if device.type == "cpu" else 64)
    size = max(1, most // elements)
    return (slice(start, min(start + size, L)) for start in range(0, L, size))
