"""Data sets by name, balanced subsets and the cache, against counting by hand."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from s4nd.train.data import DATASETS, build_dataset
from s4nd.train.data.dataset import BalancedSubset, Cached, balanced_order


def test_every_beginning_of_the_balanced_order_is_balanced():
    labels = np.repeat(np.arange(4), 25)
    order = balanced_order(labels)
    assert sorted(order) == list(range(100))
    for length in range(1, 101):
        counts = np.bincount(labels[order[:length]], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_small_classes_end_first_in_the_balanced_order():
    labels = np.array([0] * 10 + [1] * 2)
    assert np.bincount(labels[balanced_order(labels)[:8]]).tolist() == [6, 2]


def test_smaller_part_is_contained_in_a_larger_one(image_tree):
    parts = [build_dataset("folder", image_tree, "train", limit=limit).dataset.indices for limit in (1, 3, 4, 99)]
    for small, large in pairwise(parts):
        assert small.tolist() == large[: len(small)].tolist()
    assert len(parts[-1]) == 4


def test_subset_returns_the_items_it_names(numbered):
    part = BalancedSubset(numbered(20), 5)
    assert [part[i][1] for i in range(5)] == part.labels.tolist() == part.indices.tolist()


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(image_tree, limit):
    with pytest.raises(ValueError, match=f"limit must be a positive number of images or None, got {limit}"):
        build_dataset("folder", image_tree, "train", limit=limit)


def test_cache_decodes_each_image_once_and_returns_the_same(numbered):
    source = numbered(4)
    cached = Cached(source)
    first, second = ([cached[i] for i in range(4)] for _ in range(2))
    assert source.reads == 4
    for (image, label), (again, same) in zip(first, second, strict=True):
        assert torch.equal(image, again) and label == same


def test_cache_holds_no_more_than_it_may(numbered):
    for max_bytes, reads in ((4 * 3 * 12 * 12, 4), (4 * 3 * 12 * 12 - 1, 8)):
        source = numbered(4)
        cached = Cached(source, max_bytes)
        for _ in range(2):
            [cached[i] for i in range(4)]
        assert source.reads == reads


def test_cache_reads_images_of_another_size_each_time(numbered):
    source = numbered(3)
    cached = Cached(source)
    cached[0]
    source.height = 20
    assert cached[1][0].shape == cached[1][0].shape == (3, 20, 12) and source.reads == 3
    assert cached[0][0].shape == (3, 12, 12)


def test_pickled_cache_leaves_the_images_behind(numbered):
    cached = Cached(numbered(1000))
    cached[0]
    assert len(pickle.dumps(cached)) < 50_000 < cached.images.nbytes
    assert torch.equal(pickle.loads(pickle.dumps(cached))[0][0], cached[0][0])


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match="'cifra10' is unknown; did you mean cifar10"):
        build_dataset("cifra10", ".", "train")
    with pytest.raises(KeyError, match=f"known: {', '.join(DATASETS)}"):
        build_dataset("xyz", ".", "train")


def test_split_and_root_are_checked_at_the_door(tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        build_dataset("folder", tmp_path, "val")
    with pytest.raises(ValueError, match="folder needs the folder of the data as root, got None"):
        build_dataset("folder", None, "train")
    with pytest.raises(ValueError, match="photos takes no root, got"):
        build_dataset("photos", tmp_path, "train")
