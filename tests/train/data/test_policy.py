"""Strings of policies against timm, which applies the good ones, and against lists of good and bad ones."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import transforms_imagenet_train

from s4nd.train.data.policy import PARTS, check_policy, operations, repair


@pytest.mark.parametrize(
    "text",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m9-n2-p0.5-mstd101",
        "rand-m15-mmax20-tweights",
        "rand-n2-t3aw",
        "augmix-m3-w3",
        "augmix-m5-w4-d2-a0.5-b1-mstd1",
        *PARTS,
        "original-mstd0.5",
    ],
)
def test_policies_of_timm_pass(text):
    check_policy(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "auto_augment must begin with rand, augmix, original, originalr, v0, v0r, 3a"),
        ("random-m9", "auto_augment must begin with rand"),
        ("rand-m9-foo", "has the unknown part 'foo'; known in rand: mN, nN, pN, mstdN, mmaxN, incN, tNAME"),
        ("rand-m9.5", "has the unknown part 'm9.5'"),
        ("rand-mstdinf", "has the unknown part 'mstdinf'"),
        ("rand-tall", "has the unknown part 'tall'"),
        ("rand-p1.5", "has the unknown part 'p1.5'"),
        ("rand-n0", "has the unknown part 'n0'"),
        ("rand-m9-m5", "repeats 'm5'"),
        ("rand-m9-", "has the unknown part ''"),
        ("rand-m11", "must be at most 10 (mmaxN raises it), got m11"),
        ("augmix-m11", "must be at most 10, got m11"),
        ("augmix-m3-inc1", "has the unknown part 'inc1'; known in augmix: mN, wN, dN, aN, bN, mstdN"),
        ("augmix-w0", "has the unknown part 'w0'"),
        ("augmix-a0", "auto_augment 'augmix-a0' fails: "),
        ("rand-n16-tweights", "auto_augment 'rand-n16-tweights' fails: "),
        ("v0-m9", "has the unknown part 'm9'; known in v0: mstdN"),
    ],
)
def test_what_timm_would_pass_over_or_fail_at_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_policy(text)


def test_every_level_of_every_operation_is_tried(monkeypatch):
    """Of ten, with a magnitude that is drawn, and of 15 operations, one level fails."""

    def fails(image, degrees, **_):
        if abs(degrees) == 30:
            raise ValueError("cannot turn by 30 degrees")
        return image

    monkeypatch.setitem(auto_augment.NAME_TO_OP, "Rotate", fails)
    with pytest.raises(ValueError, match="auto_augment 'rand-m5-mstd3' fails: cannot turn by 30 degrees"):
        check_policy("rand-m5-mstd3")


def test_checking_leaves_the_global_generators_as_they_were():
    def drawn(check):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        check("rand-m9-n2-p1")
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    assert drawn(check_policy) == drawn(len)


@pytest.mark.parametrize(
    "text, bits", [("rand-m10-inc1", 0), ("rand-m2", 0), ("v0", 0), ("rand-m9-inc1", 1), ("v0r", 2)]
)
def test_posterized_to_no_bits_an_image_is_black(text, bits):
    """timm asks for it, where a magnitude reaches 10 say; other numbers of bits are Pillow's."""
    _, change, _ = transforms_imagenet_train(8, auto_augment=text, color_jitter=None, separate=True)
    ops = operations(repair(change.transforms[0]))
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    masks = set()
    for op in ops:
        if op.name in ("Posterize", "PosterizeIncreasing"):
            (kept,) = op.level_fn(op.magnitude, op.hparams)
            expected = np.array(image) & (256 - (1 << (8 - kept)))
            assert np.array_equal(np.array(op.aug_fn(image, kept, **op.kwargs)), expected)
            masks.add(kept)
    assert bits in masks
