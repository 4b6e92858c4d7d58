"""The global generators of python, numpy and torch, from which timm's transforms draw: seeded for a while, then as before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever is drawn or seeded inside, the generators go on afterwards as if it had not been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_generators(seed: int) -> None:
    """Seed all three with 0 <= seed < 2^63; of torch's the CPU's alone, since torch.manual_seed reaches every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
