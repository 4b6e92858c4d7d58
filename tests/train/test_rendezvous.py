"""Processes of one attempt meet each other, whatever attempts before them have left in the store."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed as dist

from s4nd.train.rendezvous import agree


@pytest.fixture
def clients():
    """clients(n) -> that many connections to one store, which outlives them."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    return lambda n: [
        dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=60)) for _ in range(n)
    ]


def attempt(stores, late):
    """The names that the processes agree on, of which some come late."""

    def come(rank):
        if rank in late:
            time.sleep(0.3)
        return agree(stores[rank], rank, len(stores))

    with ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(come, range(len(stores))))


@pytest.mark.parametrize("late", [(), (0,), (1,), (0, 2)])
def test_every_attempt_agrees_on_a_name_of_its_own(clients, late):
    names = [attempt(clients(3), late if i else ()) for i in range(3)]
    assert [len(set(of_one)) for of_one in names] == [1, 1, 1]
    assert len({of_one[0] for of_one in names}) == 3


def test_a_process_that_died_while_it_asked_is_not_counted(clients):
    """Its question is there; the process that takes its place asks anew."""
    stores = clients(2)
    stores[1].set("s4nd/question/1", "of the dead")
    names = []
    first = threading.Thread(target=lambda: names.append(agree(stores[0], 0, 2)))
    first.start()
    assert stores[1].get("s4nd/answer/of the dead")
    assert first.is_alive()  # it was answered, and is not waited for
    names.append(agree(stores[1], 1, 2))
    first.join()
    assert names[0] == names[1]


def test_one_that_does_not_come_is_named():
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError, match=r"processes \[1, 2\] of 3 did not come"):
        agree(store, 0, 3)
