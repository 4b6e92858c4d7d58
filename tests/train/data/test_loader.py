"""Loaders against counting: every image once, in the same order for any workers, shared out between processes."""

import logging
from itertools import chain

import pytest
import torch

from s4nd.train.data import BadImage, Rendering, build_dataset, make_loader
from s4nd.train.data.order import share, shuffled

MOVED = Rendering(hflip=True, pad=0.25)


def labels_of(loader):
    return [label for _, labels in loader for label in labels.tolist()]


def same(one, other):
    """Whether two loaders give the same batches, bit for bit."""
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x, y) for batch, batch2 in zip(one, other, strict=True) for x, y in zip(batch, batch2, strict=True)
    )


def test_batches_are_uint8_images_of_the_size_and_int64_labels(numbered):
    images, labels = next(iter(make_loader(numbered(10, 20, 30), 16, 4, train=True)))
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8
    assert labels.shape == (4,) and labels.dtype == torch.int64


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_workers_do_not_change_the_batches(numbered, workers, train):
    args = {"train": train, "rendering": MOVED, "seed": 3, "epoch": 2}
    alone = make_loader(numbered(22), 8, 4, **args)
    assert same(alone, make_loader(numbered(22), 8, 4, workers=workers, **args))


@pytest.mark.parametrize("train", [True, False])
def test_workers_that_live_on_give_each_epoch_what_new_ones_give(numbered, train):
    """Whatever became of the iteration before: it ended, or was left after a batch, with others under way."""
    args = {"train": train, "rendering": MOVED, "seed": 3}
    loader, processes = make_loader(numbered(22), 8, 4, workers=2, **args), set()
    for epoch, begin in ((0, 0), (1, 0), (1, 2), (0, 1)):
        for leave in (True, False):
            loader.set_epoch(epoch, begin)
            batches = iter(loader)
            if leave:
                next(batches)
        rest = list(make_loader(numbered(22), 8, 4, epoch=epoch, **args))[begin:]
        assert len(loader) == len(rest) and same(batches, rest)
        processes |= {worker.pid for worker in loader._iterator._workers}
    assert len(processes) == 2


def test_global_generator_is_neither_used_nor_moved(numbered):
    torch.manual_seed(0)
    first = list(make_loader(numbered(20), 8, 4, train=True, rendering=MOVED))
    moved = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(moved, torch.rand(1))
    assert same(first, make_loader(numbered(20), 8, 4, train=True, rendering=MOVED))


def test_order_follows_seed_and_epoch(numbered):
    orders = [
        labels_of(make_loader(numbered(40), 8, 4, train=True, seed=seed, epoch=epoch))
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] == orders[1] != orders[2] != orders[3] != orders[0]
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_augmentation_follows_seed_and_epoch(numbered):
    shifts = [
        make_loader(numbered(40), 8, 4, train=True, rendering=MOVED, seed=seed).dataset.at(epoch, 8).shift.tolist()
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert shifts[0] == shifts[1] != shifts[2] != shifts[3] != shifts[0]


@pytest.mark.parametrize("count, batches", [(10, [4, 4]), (8, [4, 4]), (4, [4]), (3, [3])])
def test_training_drops_a_last_batch_that_is_not_full_unless_it_is_the_only_one(numbered, count, batches):
    loader = make_loader(numbered(count), 8, 4, train=True)
    assert [len(labels) for _, labels in loader] == batches and len(loader) == len(batches)


@pytest.mark.parametrize("count, world_size", [(7, 1), (7, 2), (8, 3), (2, 3), (23, 4)])
def test_evaluation_counts_each_image_in_one_process_once(numbered, count, world_size):
    shares = [
        labels_of(make_loader(numbered(count), 8, 3, train=False, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(chain(*shares)) == list(range(count))


def test_evaluation_neither_flips_nor_shifts_nor_shuffles(numbered):
    data = numbered(6)
    images, labels = next(iter(make_loader(data, 12, 6, train=False, rendering=MOVED, epoch=5)))
    assert labels.tolist() == list(range(6)) and all(torch.equal(images[i], data[i][0]) for i in range(6))


@pytest.mark.parametrize("count", [24, 29, 50])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_take_the_steps_of_one(numbered, count, world_size):
    args = {"train": True, "rendering": MOVED}
    alone = list(make_loader(numbered(count), 8, 12, **args))
    shares = [
        list(make_loader(numbered(count), 8, 12 // world_size, rank=rank, world_size=world_size, **args))
        for rank in range(world_size)
    ]
    assert all(len(share) == len(alone) for share in shares)
    for step, (images, labels) in enumerate(alone):
        seen = {
            label: image
            for share in shares
            for image, label in zip(share[step][0], share[step][1].tolist(), strict=True)
        }
        assert sorted(seen) == sorted(labels.tolist())
        assert all(torch.equal(seen[label], image) for image, label in zip(images, labels.tolist(), strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_hold_the_pairs_that_one_would_mix(world_size):
    """An image is mixed with the one as far from the other end of its batch."""

    def pairs(rank, world_size):
        batches = torch.tensor(share(shuffled(30, 0), 12, rank, world_size)).view(2, 12 // world_size)
        return {frozenset(pair) for row in batches.tolist() for pair in zip(row, row[::-1], strict=True)}

    alone = pairs(0, 1)
    assert len(alone) == 12 and set.union(*(pairs(rank, world_size) for rank in range(world_size))) == alone


def test_every_process_gets_the_only_batch_even_if_it_cannot_be_shared_evenly(numbered):
    shares = [labels_of(make_loader(numbered(5), 8, 4, train=True, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3] and set(chain(*shares)) == set(range(5))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_skipped_in_training_and_reported_once(numbered, caplog, workers):
    data = numbered(9, bad=(2,), name=f"skipped-with-{workers}")
    with caplog.at_level(logging.WARNING, logger="s4nd"):
        for epoch in range(3):
            seen = labels_of(make_loader(data, 8, 3, train=True, epoch=epoch, workers=workers))
            assert sorted(seen) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped an image that cannot be read: skipped-with-{workers}-2: damaged"
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_an_error_in_evaluation(numbered, workers):
    with pytest.raises(BadImage, match=r"^image-4: damaged$"):
        list(make_loader(numbered(6, bad=(4,)), 8, 2, train=False, workers=workers))


def test_evaluation_leaves_unreadable_images_out_on_request(numbered):
    data = numbered(6, bad=(4,), name="left-out")
    assert labels_of(make_loader(data, 8, 2, train=False, skip_bad=True)) == [0, 1, 2, 3, 5]


def test_batch_of_which_nothing_remains_is_left_out(numbered):
    data = numbered(6, bad=(2, 3), name="whole-batch")
    assert [labels.tolist() for _, labels in make_loader(data, 8, 2, train=False, skip_bad=True)] == [[0, 1], [4, 5]]


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_in_a_real_folder_are_named(image_tree, picture, caplog, workers, encode):
    data = encode(picture(64, 64), "JPEG")
    (image_tree / "train" / "cat" / "half.jpg").write_bytes(data[: len(data) // 2])
    (image_tree / "train" / "dog" / "text.jpg").write_text("hello")
    train = build_dataset("folder", image_tree, "train")
    assert len(labels_of(make_loader(train, 8, 3, train=True, workers=workers))) == 4
    assert {record.getMessage().split(": ")[1].rsplit("/", 1)[1] for record in caplog.records} == {
        "half.jpg",
        "text.jpg",
    }
    with pytest.raises(BadImage, match=r"cat/half\.jpg: .*truncated"):
        list(make_loader(train, 8, 2, train=False, workers=workers))


def test_error_that_is_not_of_an_image_is_never_skipped(numbered):
    data = numbered(4)
    data.width = "twelve"
    with pytest.raises(TypeError):
        list(make_loader(data, 8, 2, train=True))
