"""The processes of a run: how they join, and what one of them does for all."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from timm.utils.distributed import init_distributed_device_so
from torch import distributed as dist

from s4nd.ops.precision import widest

from . import rendezvous

T = TypeVar("T")
LAUNCHERS = (
    "SLURM_NTASKS",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
)  # how many processes others than torchrun say they start


class Place(NamedTuple):
    """Where a process computes, which it is, and how many there are."""

    device: torch.device
    rank: int
    world_size: int


def join(device: torch.device) -> Place:
    """Join the processes that torchrun started; alone without it.

    Raises:
        ValueError: another launcher says that there are several, but not where they meet: each would train alone.
    """
    if "WORLD_SIZE" not in os.environ and "MASTER_ADDR" not in os.environ:
        for name in LAUNCHERS:
            if os.environ.get(name, "1") != "1":
                raise ValueError(
                    f"{name}={os.environ[name]}, but these processes were not started by torchrun and would train alone, each "
                    "over the other's files: start them as `srun torchrun --nnodes ... -m s4nd.train CONFIG`, or set "
                    "WORLD_SIZE=1 if this is to be the only one"
                )
    place = init_distributed_device_so(str(device), dist_url=rendezvous.URL)
    return Place(torch.device(place["device"]), place["global_rank"], place["world_size"])


def leave() -> None:
    """The end of `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives, or raises, in the first process, for all of them: they may have no disk in common.

    Tensors of it must be on the CPU.
    """
    if not dist.is_initialized():
        return make()
    box: list = [None]
    if dist.get_rank() == 0:
        try:
            box = [(make(), None)]
        except Exception as error:
            box = [(None, error)]
    dist.broadcast_object_list(box)
    value, raised = box[0]
    if raised is not None:
        raise raised
    return value


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Elementwise sums over the processes; of one process alone nothing goes to the device and back."""
    if not (dist.is_available() and dist.is_initialized()):
        return [float(x) for x in values]
    total = torch.tensor(values, dtype=widest(device), device=device)
    dist.all_reduce(total)
    return total.tolist()
