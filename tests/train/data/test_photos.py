"""The embedded photographs against what is claimed of them: no shared pixel, no chance, more detail at finer sizes."""

import hashlib
import socket
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from s4nd.train.data import Resized, build_dataset
from s4nd.train.data import photos as module
from s4nd.train.data.photos import PHOTOS, Photos, crop_corners, kept_for_testing, to_grey

pytest.importorskip("skimage")
SIZES = (16, 24, 32, 48, 64)


@pytest.fixture(scope="module")
def train():
    return build_dataset("photos", None, "train")


@pytest.fixture(scope="module")
def test():
    return build_dataset("photos", None, "test")


def covered(dataset, label):
    """(H, W) bool: the pixels of a picture that some crop holds."""
    mask, side = np.zeros(dataset.pictures[label].shape[1:], dtype=bool), dataset.sides[label]
    for y, x in dataset.corners[label]:
        mask[y : y + side, x : x + side] = True
    return mask


@pytest.mark.parametrize("label", range(len(PHOTOS)), ids=list(PHOTOS))
def test_training_and_test_crops_share_no_pixel(train, test, label):
    ours, theirs = covered(train, label), covered(test, label)
    assert not (ours & theirs).any()
    assert ours.mean() > 0.4 and theirs.mean() > 0.08  # both see a good part of the picture


def test_counts_and_shapes_are_as_documented(train, test):
    assert len(train) == 14 * 200 and len(test) == 14 * 50
    assert np.bincount(train.labels).tolist() == [200] * 14 and train.classes == test.classes == list(PHOTOS)
    assert min(train.sides) == 96 and train.sides == test.sides
    for i in range(0, len(test), 50):
        image, label = test[i]
        assert image.dtype == torch.uint8 and image.shape == (3, test.sides[label], test.sides[label])
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_crops_of_a_class_are_distinct(train):
    for corners in train.corners:
        assert len({tuple(corner) for corner in corners.tolist()}) == 200


def test_crops_are_the_same_on_every_machine(train):
    """The corners, and the pixels of a crop from a lossless file, are those once recorded."""
    corners = np.concatenate(train.corners).astype("<i8").tobytes()
    brick = train[200][0].contiguous().numpy().tobytes()
    assert hashlib.sha256(corners).hexdigest()[:16] == "ae4bfc5b2be6ac5d"
    assert hashlib.sha256(brick).hexdigest()[:16] == "bbb179d0f3a7f204"


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert len(Photos("test", crops=1)) == 14


def test_finer_renderings_hold_detail_that_coarser_ones_lack(test):
    """At each size and in each class more than one grey level (rms) that upsampling the next coarser one does not give."""
    views = {size: Resized(test, size) for size in SIZES}
    indices = [50 * label + 7 * i for label in range(14) for i in range(7)]
    rendered = {size: torch.stack([view[i][0] for i in indices]).float() for size, view in views.items()}
    for coarse, fine in pairwise(SIZES):
        detail = rendered[fine] - resize(rendered[coarse], [fine, fine], antialias=True)
        assert detail.square().reshape(14, -1).mean(1).sqrt().min() > 1


def test_finest_rendering_reduced_is_the_coarsest(test):
    """The same picture at every size: within the rounding to whole grey levels."""
    for i in range(0, len(test), 10):
        coarse, fine = Resized(test, 16)[i][0].float(), Resized(test, 64)[i][0].float()
        assert (resize(fine, [16, 16], antialias=True) - coarse).square().mean().sqrt() < 1


def test_corners_keep_squares_inside_the_region():
    region = kept_for_testing(300, 450)
    for y, x in crop_corners(region, 40, 300):
        assert region[y : y + 40, x : x + 40].all()


def test_too_many_crops_are_refused_with_the_room_there_is():
    with pytest.raises(ValueError, match="room for at most 4 crops of 7 pixels, got 5"):
        crop_corners(np.ones((10, 10), dtype=bool), 7, 5)


def test_grey_is_luma_and_leaves_grey_alone():
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(to_grey(grey.expand(3, -1, -1)), grey[0])
    assert to_grey(torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(3, 1, 1)).item() == 76  # 0.299 * 255


def test_absent_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "s4nd\[demo\]"'):
        build_dataset("photos", None, "train")


def test_absent_picture_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "photo_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"astronaut\.png"):
        Photos("train")
