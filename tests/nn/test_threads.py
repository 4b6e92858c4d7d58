"""One layer or model in many threads, against a fresh one that answers alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from s4nd.nn.kept import Kept, Numbers
from tests.small import F64, assert_close, build, fresh

THREADS = 8
NAMES = {"s4 layer": 4, "s4d layer": 4, "s4nd_iso_tiny": 3}  # channels of the input
GRIDS = [(n, m) for n in range(4, 9) for m in range(5, 10)]


def inputs(name):
    return [torch.randn(1, NAMES[name], *grid, generator=torch.Generator().manual_seed(0), dtype=F64) for grid in GRIDS]


@torch.no_grad()
def answers(model, xs):
    return [model(x) for x in xs]


def in_threads(work):
    """work(number of the thread), in all threads at once; the first error is raised."""
    start = threading.Barrier(THREADS)

    def run(number):
        start.wait(60)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(run, number) for number in range(THREADS)]]


@pytest.mark.parametrize("name", NAMES)
def test_threads_that_share_a_model_get_the_answers_of_one(name):
    """Each begins at another size, so that at any time some are computed, kept, used and forgotten."""
    model, xs = build(name), inputs(name)
    expected = answers(build(name), xs)

    def work(number):
        order = [(i * 7 + 3 * number) % len(xs) for i in range(2 * len(xs))]
        return order, answers(model, [xs[i] for i in order])

    for order, found in in_threads(work):
        for i, y in zip(order, found, strict=True):
            assert_close(y, expected[i])


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_change_between_batches_of_threads_are_seen_by_all(name):
    """Between two barriers one thread writes, through `.data`, which leaves no trace."""
    model, xs = build(name), inputs(name)[:3]
    rounds = 5
    expected, turn = [], threading.Barrier(THREADS)
    alone = fresh(model, lambda: build(name))
    for _ in range(rounds):
        expected.append(answers(fresh(alone, lambda: build(name)), xs))
        for p in alone.parameters():
            p.data.mul_(1.1)

    def work(number):
        found = []
        for _ in range(rounds):
            turn.wait(60)
            found.append(answers(model, xs))
            turn.wait(60)
            if number == 0:
                for p in model.parameters():
                    p.data.mul_(1.1)
        return found

    for found in in_threads(work):
        for ys, es in zip(found, expected, strict=True):
            for y, e in zip(ys, es, strict=True):
                assert_close(y, e)


@pytest.mark.parametrize("name", NAMES)
def test_one_thread_trains_a_copy_while_others_evaluate(name):
    """Copies share nothing: neither what is kept nor what is being made."""
    model, xs = build(name), inputs(name)[:6]
    expected = answers(build(name), xs)

    def work(number):
        if number:
            return answers(model, [*xs, *xs])
        twin = copy.deepcopy(model).train()
        for x in xs:
            twin(x).square().mean().backward()
            for p in twin.parameters():
                p.data.mul_(0.9)
        return []

    for found in in_threads(work)[1:]:
        for y, e in zip(found, [*expected, *expected], strict=True):
            assert_close(y, e)


def test_value_made_while_another_thread_changes_the_numbers_is_not_kept():
    kept, weight = Kept(), torch.zeros(1)

    def made(change):
        return kept.get_or_compute("key", lambda: Numbers((), (weight,)), lambda: weight.add_(change).clone())

    assert made(1) == 1 and kept.entries == 0  # half of it may be of either
    assert made(0) == 1 and kept.entries == 1
