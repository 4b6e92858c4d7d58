"""Augmented images against themselves: for any workers, processes, order and batches, (seed, epoch, index) gives the pixels."""

import pickle
import random

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from s4nd.train.data import Augmented, BadImage, ImageTransforms, Rendering, Resized, make_loader
from s4nd.train.data.order import share, shuffled

EVERYTHING = ImageTransforms(
    crop_scale=(0.2, 1.0),
    train_interpolation="random",
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.4,
    reprob=0.5,
    recount=2,
    aug_repeats=3,
)
SQUARES = ImageTransforms(auto_augment="augmix-m3-w3", reprob=0.5, aug_repeats=3)  # of the flipped and shifted square


def by_label(loader):
    """{label: the images of it, in the order of the loader}"""
    seen = {}
    for images, labels in loader:
        for image, label in zip(images, labels.tolist(), strict=True):
            seen.setdefault(label, []).append(image)
    return seen


def equal(one, other):
    return one.keys() == other.keys() and all(
        len(one[label]) == len(other[label]) and all(map(torch.equal, one[label], other[label])) for label in one
    )


@pytest.fixture(params=[EVERYTHING, SQUARES], ids=["crops", "squares"])
def loader(numbered, request):
    """loader(**options) -> of 24 images, three of each of 8, in batches of 12."""
    rendering = Rendering(hflip=True, pad=0.0 if request.param.crop_scale else 0.25, transforms=request.param)

    def make(**options):
        options = {"batch_size": 12, "seed": 3, "epoch": 2} | options
        return make_loader(numbered(24), 8, train=True, rendering=rendering, **options)

    return make


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_batches_do_not_change_an_image(loader, workers):
    alone = by_label(loader())
    assert len(alone) == 8 and equal(alone, by_label(loader(workers=workers)))
    assert equal(alone, by_label(loader(batch_size=4)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_see_what_one_sees(loader, world_size):
    """Step by step; the repetitions of an image are in different processes."""
    alone = list(loader())
    shares = [list(loader(rank=rank, world_size=world_size, batch_size=12 // world_size)) for rank in range(world_size)]
    for step, (images, labels) in enumerate(alone):
        found = torch.cat([share[step][0] for share in shares])
        assert len(found) == len(images)
        assert all((image == found).flatten(1).all(1).any() for image in images)
        for label in labels.unique():
            assert sum((share[step][1] == label).any().item() for share in shares) == min(world_size, 3)


def test_what_was_read_before_does_not_change_an_image(loader):
    view = loader().dataset.at(2, 8)
    alone = [view[i][0] for i in range(len(view))]
    backwards = view.__getitems__([*reversed(range(len(view)))])
    assert all(torch.equal(alone[-1 - i], image) for i, (image, _) in enumerate(backwards))


def test_seed_epoch_index_and_repetition_each_change_an_image(loader):
    view = loader().dataset.at(2, 8)
    assert len(view) == 3 * 24
    others = [loader(seed=4).dataset.at(2, 8), loader().dataset.at(3, 8)]
    versions = [[view[i + 24 * r][0] for r in range(3)] + [other[i][0] for other in others] for i in range(24)]
    different = [len({image.numpy().tobytes() for image in images}) for images in versions]
    assert min(different) > 3 and sum(different) > 0.95 * 5 * 24


def test_global_generators_are_neither_used_nor_moved(loader):
    def drawn(between):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        images = between()
        return images, (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002

    images, numbers = drawn(lambda: by_label(loader()))
    assert numbers == drawn(lambda: None)[1] and equal(images, by_label(loader()))


def test_generators_are_kept_when_a_transform_fails(numbered):
    view = Augmented(numbered(2), 8, EVERYTHING)
    view.transform = lambda image: torch.rand(1).item() / 0
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError):
        view[0]
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_view_survives_the_way_to_a_spawned_worker(numbered):
    for view in (Augmented(numbered(3), 8, EVERYTHING), Resized(numbered(3), 8, interpolation="bicubic")):
        assert torch.equal(pickle.loads(pickle.dumps(view))[1][0], view[1][0])


def test_unreadable_image_is_marked_in_a_batch(numbered):
    items = Augmented(numbered(3, bad=(1,)), 8, EVERYTHING).__getitems__([0, 1, 2, 4])
    assert [isinstance(item, BadImage) for item in items] == [False, True, False, True]


@pytest.mark.parametrize("count, repeats", [(24, 3), (24, 1), (25, 4), (5, 7)])
def test_repetitions_are_those_of_timms_sampler(count, repeats):
    sampler = RepeatAugSampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)
    sampler.set_epoch(11)
    items = share(shuffled(count, 11), 1, 0, 1, repeats=repeats)
    assert [item % count for item in items] == list(sampler) and len(items) == count
    assert [item // count for item in items] == [i % repeats for i in range(count)]


def test_repeated_images_are_flipped_and_shifted_independently(numbered):
    view = Resized(numbered(2000), 8, hflip=True, pad=0.25, repeats=2)
    first, second = view.flip[:2000], view.flip[2000:]
    assert abs((first == second).float().mean() - 0.5) < 0.06  # five standard deviations
    assert not torch.equal(view.shift[:2000], view.shift[2000:])
    alone = Resized(numbered(2000), 8, hflip=True, pad=0.25)
    assert torch.equal(alone.flip, first) and torch.equal(alone.shift, view.shift[:2000])


def test_evaluation_is_not_augmented(numbered):
    data = numbered(6)
    images, labels = next(
        iter(make_loader(data, 12, 6, train=False, rendering=Rendering(hflip=True, transforms=EVERYTHING)))
    )
    assert labels.tolist() == list(range(6)) and all(torch.equal(images[i], data[i][0]) for i in range(6))


def test_without_transforms_images_take_the_fast_way(numbered):
    view = make_loader(numbered(6), 8, 2, train=True, rendering=Rendering(hflip=True)).dataset.at(0, 8)
    assert type(view) is Resized
