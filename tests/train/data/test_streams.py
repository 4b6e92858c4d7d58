"""Streams against the same images at random access: each sample once, bit for bit, for any shards, workers and processes."""

import logging
from itertools import chain, pairwise

import pytest
import torch

from s4nd.train.data import Augmented, ImageTransforms, Reading, Rendering, build_dataset, make_loader, split_off
from s4nd.train.data.streams import Stream

LENGTHS = [(13,), (4, 1, 6, 2), (1,) * 13]  # fewer shards than workers, uneven ones, and more of them
MOVED = Rendering(hflip=True, pad=0.25)


@pytest.fixture
def stream(write_shards):
    """stream(lengths, shuffle=5, split="train") -> pictures of `Numbered` in shards of these lengths."""
    return lambda lengths, shuffle=5, split="train": build_dataset(
        "wds/numbered", write_shards(lengths, split), split, reading=Reading(shuffle=shuffle)
    )


def labels_of(loader):
    return [label for _, labels in loader for label in labels.tolist()]


def same(one, other):
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x, y) for pair in zip(one, other, strict=True) for x, y in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_that_of_random_access_in_each_process(stream, numbered, lengths, workers):
    data, seen = stream(lengths, split="test"), []
    for rank in range(2):
        place = {"train": False, "rank": rank, "world_size": 2}
        batches = list(make_loader(data, 8, 3, workers=workers, **place))
        assert same(batches, make_loader(numbered(13), 8, 3, **place))
        seen += labels_of(batches)
    assert sorted(seen) == list(range(13))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_an_epoch_of_training_has_no_sample_twice(stream, lengths):
    for epoch in range(3):
        shares = [
            labels_of(make_loader(stream(lengths), 8, 2, train=True, epoch=epoch, rank=rank, world_size=2, workers=2))
            for rank in range(2)
        ]
        assert [len(share) for share in shares] == [6, 6] and len({*chain(*shares)}) == 12


@pytest.mark.parametrize(
    "rendering", [MOVED, Rendering(transforms=ImageTransforms(crop_scale=(0.2, 1), reprob=0.5, aug_repeats=3))]
)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_images_are_those_of_random_access(stream, numbered, rendering, workers):
    """An image is augmented by its place in what is stored, wherever it comes in the order."""
    args = {"train": True, "rendering": rendering, "seed": 3, "epoch": 2, "workers": workers}
    view = rendering.training(numbered(13), 8, seed=3, epoch=2)
    data, count = stream((4, 1, 6, 2)), 0
    loader = make_loader(data, 8, 4, **args)
    for (images, labels), batch in zip(loader, torch.tensor(loader.order.whole()).split(4), strict=True):
        assert labels.tolist() == (batch % 13).tolist()
        for image, index in zip(images, batch.tolist(), strict=True):
            assert torch.equal(image, view[index][0])
            count += 1
    assert count == 12 and (type(view) is Augmented) == (rendering is not MOVED)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_take_the_steps_of_one(stream, world_size):
    data = stream((4, 1, 6, 2, 20))
    alone = list(make_loader(data, 8, 8, train=True, rendering=MOVED))
    share = {"train": True, "rendering": MOVED, "world_size": world_size}
    shares = [list(make_loader(data, 8, 8 // world_size, rank=rank, **share)) for rank in range(world_size)]
    for step, (_, labels) in enumerate(alone):
        assert sorted(chain(*(part[step][1].tolist() for part in shares))) == sorted(labels.tolist())


def test_shards_and_windows_are_shuffled_by_seed_and_epoch(stream):
    lengths = (4, 3, 5, 6, 2)
    orders = [
        labels_of(make_loader(stream(lengths), 8, 20, train=True, seed=seed, epoch=epoch))
        for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] == orders[1] != orders[2] != orders[3] != orders[0]
    whole = labels_of(make_loader(stream(lengths, shuffle=1), 8, 20, train=True))
    breaks = [(a, b) for a, b in pairwise(whole) if b != a + 1]
    assert 1 <= len(breaks) <= 4 and {b for _, b in breaks} <= {0, 4, 7, 12, 18}  # only the shards are shuffled
    near = stream((20,), shuffle=5).shuffled(0)
    assert (near // 5).tolist() == [i // 5 for i in range(20)] and not torch.equal(near, torch.arange(20))


@pytest.mark.parametrize("before, after", [(0, 2), (2, 0), (2, 1)])
def test_an_epoch_goes_on_where_it_was_interrupted_with_any_workers(stream, before, after):
    data = stream((4, 1, 6, 2, 20))
    whole = list(make_loader(data, 8, 3, train=True, rendering=MOVED, epoch=1, workers=before))
    loader = make_loader(data, 8, 3, train=True, rendering=MOVED, workers=after)
    loader.set_epoch(1, 7)
    assert len(loader) == len(whole) - 7 and same(loader, whole[7:])
    loader.set_epoch(1)
    assert len(loader) == len(whole) and same(loader, whole)


def test_shards_before_an_interruption_are_not_opened(stream, monkeypatch):
    data, opened = stream((5, 5, 5, 5), shuffle=1), []
    samples = type(data).samples
    monkeypatch.setattr(
        type(data), "samples", lambda self, shard, wanted: opened.append(shard) or samples(self, shard, wanted)
    )
    loader = make_loader(data, 8, 5, train=True)
    loader.set_epoch(0, 3)
    assert len(labels_of(loader)) == 5 and len(opened) == 1


def test_about_a_window_of_samples_is_held(stream):
    """Of one shard, as of many: what is held when a batch leaves are samples of its window and of the next one."""
    for lengths in ((60,), (20, 1, 9, 30), (6,) * 10):
        loader = make_loader(stream(lengths, shuffle=10), 8, 4, train=True)
        most = max(len(loader.dataset.stream.held) for _ in loader)
        assert 1 < most <= 20


def test_a_stream_has_one_label_each_which_nobody_knows_beforehand(stream):
    data = stream((4, 2))
    assert len(data) == 6 and data.labels.tolist() == [-1] * 6 and isinstance(data, Stream)
    with pytest.raises(ValueError, match=r"a stream cannot be divided"):
        split_off(data, 0.5)
    with pytest.raises(ValueError, match=r"wds/numbered is read as a stream, of which a limit"):
        build_dataset("wds/numbered", "anywhere", "train", limit=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_ends_early_is_named_once_and_what_it_lacks_is_counted(stream, tmp_path, caplog, workers):
    data = stream((5, 5, 3))
    path = tmp_path / "train-001.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9])  # two members of two blocks each for a sample
    path.rename(tmp_path / f"cut-{workers}.tar")
    data.addresses[1] = str(tmp_path / f"cut-{workers}.tar")
    with caplog.at_level(logging.WARNING, logger="s4nd"):
        for _ in range(2):
            loader = make_loader(data, 8, 2, train=False, workers=workers, skip_bad=True)
            assert labels_of(loader) == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12] and loader.unreadable == 3
    (record,) = caplog.records
    assert f"cut-{workers}.tar: it ends after 2 of 5 samples: " in record.getMessage()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("shard, lengths", [(0, [4, 3]), (1, [5, 2])])
def test_a_shard_of_more_samples_than_was_said_is_refused(stream, workers, shard, lengths):
    """The last one too, of which nothing more is wanted."""
    data = stream((5, 3))
    data.lengths, data.starts = lengths, [0, lengths[0], 7]
    data.labels = data.labels[:7]
    message = rf"train-00{shard}\.tar must hold {lengths[shard]} samples, as was said of it, and holds more"
    with pytest.raises(ValueError, match=message):
        list(make_loader(data, 8, 2, train=False, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_that_is_no_class_is_refused(stream, workers):
    data = stream((5, 3))
    data.classes = data.classes[:6]
    with pytest.raises(ValueError, match=r"train-001\.tar: 0006: the label must be 0 to 5, got 6"):
        list(make_loader(data, 8, 2, train=False, workers=workers, skip_bad=True))
