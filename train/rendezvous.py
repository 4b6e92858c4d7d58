"""Where the processes of a run meet: in a part of the store that holds nothing of an attempt before.

torchrun keeps its store when it starts the processes again after one has died, and they would meet under the same keys. A
process that reads the address of another before that one has written its new one waits for a dead one: half an hour by torch's
default, and for nothing. Numbers that torchrun gives do not tell attempts apart where several agents have counted
differently, so the first process gives each attempt a name, and tells it to those alone who ask in this attempt.
"""

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch import distributed as dist
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

SCHEME = "s4nd"
URL = f"{SCHEME}://"
POLL_SECONDS = 0.01


def _meet(url: str, **options: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """torch's `env://`, in a part of its store that is this attempt's; a handler of `init_process_group`.

    Yields:
        store, rank, world_size.
    """
    query = url.partition("?")[2]
    for store, rank, world_size in rendezvous(f"env://?{query}" if query else "env://", **options):
        yield dist.PrefixStore(agree(store, rank, world_size), store), rank, world_size


def agree(store: dist.Store, rank: int, world_size: int) -> str:
    """The name of this attempt, the same in its processes and in no other attempt.

    Every process but the first asks with a number that nobody has used. The first answers whatever it finds asked, and goes on
    when every process has thanked it for its own name: questions of the dead are answered too, but they do not thank.

    Raises:
        torch.distributed.DistStoreError: a process did not come in the time that the store allows.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"{SCHEME}/question/{rank}", own)
        name = store.get(f"{SCHEME}/answer/{own}").decode()
        store.set(f"{SCHEME}/thanks/{name}/{rank}", "")
        return name
    limit: timedelta = store.timeout  # type: ignore[attr-defined]  # torch does not say that it has one
    deadline = time.monotonic() + limit / timedelta(seconds=1)
    silent = set(range(1, world_size))
    while silent:
        for other in silent:
            if store.check([f"{SCHEME}/question/{other}"]):
                asked = store.get(f"{SCHEME}/question/{other}").decode()
                store.set(f"{SCHEME}/answer/{asked}", own)
        silent = {other for other in silent if not store.check([f"{SCHEME}/thanks/{own}/{other}"])}
        if silent and time.monotonic() > deadline:
            raise dist.DistStoreError(f"processes {sorted(silent)} of {world_size} did not come within {limit}")
        time.sleep(POLL_SECONDS if silent else 0)
    return own


register_rendezvous_handler(SCHEME, _meet)
