"""Transforms of images against timm's own pipelines, drawing from the same seeds."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from s4nd.train.data import Augmented, ImageTransforms, Resized
from s4nd.train.data.generators import generators_kept, seed_generators
from s4nd.train.data.resized import mix

SIZE = 12


class Pictures(torch.utils.data.Dataset):
    """Smooth colour pictures of several shapes: what resizes, crops and jitters them is seen."""

    def __init__(self, count=6, shapes=((30, 40), (41, 23), (32, 32))):
        rng, self.images = np.random.default_rng(0), []
        for i in range(count):
            height, width = shapes[i % len(shapes)]
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
            self.images.append(torch.from_numpy(np.array(coarse)).permute(2, 0, 1))
        self.labels, self.classes = np.arange(count), [str(i) for i in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index


def pil(image):
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def shown(transforms, **options):
    """Every picture as training sees it."""
    view = Augmented(Pictures(), SIZE, ImageTransforms(**transforms), **options)
    return [image for image, _ in view.__getitems__(list(range(len(view))))]


def by_timm(transform, seed=0, epoch=0, images=None):
    """Every picture, or other images, by timm's pipeline, seeded for each of them."""
    made = []
    for i, image in enumerate(images or Pictures().images):
        with generators_kept():
            seed_generators(mix(seed, epoch, f"transforms {i}"))
            made.append(transform(pil(image)))
    return made


CROPS = {"crop_scale": (0.08, 1.0)}


@pytest.mark.parametrize(
    "ours, timms",
    [
        (CROPS, {}),
        ({"crop_scale": (0.5, 0.6), "crop_ratio": (1.5, 2.0)}, {"scale": (0.5, 0.6), "ratio": (1.5, 2.0)}),
        (CROPS | {"interpolation": "bicubic"}, {"interpolation": "bicubic"}),
        (CROPS | {"interpolation": "bicubic", "train_interpolation": "random"}, {"interpolation": "random"}),
        (CROPS | {"color_jitter": 0.4}, {"color_jitter": 0.4}),
        (CROPS | {"auto_augment": "rand-m9-mstd0.5-inc1"}, {"auto_augment": "rand-m9-mstd0.5-inc1"}),
        (CROPS | {"auto_augment": "augmix-m3-w3"}, {"auto_augment": "augmix-m3-w3"}),
        (CROPS | {"auto_augment": "original-mstd0.5"}, {"auto_augment": "original-mstd0.5"}),
    ],
)
@pytest.mark.parametrize("hflip", [True, False])
def test_training_images_are_those_of_timm(ours, timms, hflip):
    options = {"interpolation": "bilinear", "color_jitter": None, "hflip": 0.5 if hflip else 0.0} | timms
    reference = create_transform(SIZE, is_training=True, normalize=False, **options)
    for seed, epoch in ((0, 0), (1, 0), (0, 1)):
        got = shown(ours, hflip=hflip, seed=seed, epoch=epoch)
        assert all(torch.equal(a, b) for a, b in zip(got, by_timm(reference, seed, epoch), strict=True))


def test_without_random_crops_policies_change_the_flipped_and_shifted_square():
    flips, policy = {"hflip": True, "pad": 0.25, "seed": 3}, {"auto_augment": "rand-m9", "interpolation": "bilinear"}
    plain = Resized(Pictures(), SIZE, **flips)
    _, change, final = create_transform(SIZE, is_training=True, normalize=False, separate=True, **policy)
    squares = [plain[i][0] for i in range(6)]
    expected = by_timm(lambda image: final(change(image)), seed=3, images=squares)
    assert all(torch.equal(a, b) for a, b in zip(shown(policy, **flips), expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(squares, expected, strict=True))


def test_policy_that_posterizes_to_no_bits_does_not_fail():
    got = shown({"auto_augment": "rand-m10-n40-p1-inc1"})  # 240 operations of 15 kinds
    assert all(image.shape == (3, SIZE, SIZE) for image in got)


def test_policy_and_jitter_are_both_applied():
    policy, jitter = (
        {"auto_augment": "rand-m0-p0"},
        {"color_jitter": 0.8},
    )  # a policy that does nothing draws from others
    alone, both = shown(CROPS | jitter), shown(CROPS | jitter | policy)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(shown(CROPS | policy), both, strict=True))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("count", [1, 3])
def test_erased_pixels_are_timms_rounded_and_clipped_and_the_others_are_untouched(mode, count):
    """timm erases a normalised image, and its numbers are what the model would see."""
    got = shown({"reprob": 1.0, "remode": mode, "recount": count})
    plain = [image for image, _ in Resized(Pictures(), SIZE).__getitems__([*range(6)])]
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    erase = RandomErasing(1.0, mode=mode, max_count=count, device="cpu")
    for i, (image, before) in enumerate(zip(got, plain, strict=True)):
        with generators_kept():
            seed_generators(mix(0, 0, f"transforms {i}"))
            normalised = erase((before.float() / 255 - mean) / std)
        expected = (255 * (normalised * std + mean)).clamp(0, 255)
        assert (image - expected).abs().max() <= 0.5 + 1e-4 and not torch.equal(image, before)


def test_probability_of_erasing():
    plain = Resized(Pictures(400), SIZE)
    view = Augmented(Pictures(400), SIZE, ImageTransforms(reprob=0.25))
    erased = sum(not torch.equal(view[i][0], plain[i][0]) for i in range(400))
    assert abs(erased / 400 - 0.25) < 0.11  # five standard deviations


def test_erasing_of_a_grey_model_is_grey():
    for mode in ("const", "rand", "pixel"):
        got = shown({"reprob": 1.0, "remode": mode}, mean=(0.4,), std=(0.2,))
        plain = [image for image, _ in Resized(Pictures(), SIZE).__getitems__([*range(6)])]
        for image, before in zip(got, plain, strict=True):
            erased = (image != before).any(0)
            assert (image[:, erased] == image[:1, erased]).all() and erased.any()
            assert mode != "const" or (image[:, erased] == 102).all()


@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest", "box", "hamming", "lanczos", "bilinear"])
def test_rendering_at_test_time_is_timms(crop_pct, interpolation):
    view = Resized(Pictures(), SIZE, interpolation=interpolation, crop_pct=crop_pct)
    reference = create_transform(SIZE, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    default = (interpolation, crop_pct) == ("bilinear", 1)
    for i in (2, 5) if default else range(6):  # by default the square is cut first: the same of a square picture
        error = (view[i][0].int() - reference(pil(Pictures().images[i])).int()).abs().max()
        assert error <= (1 if default else 0)  # by default torchvision's integers round


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 2)])
def test_strip_is_cut_before_it_is_resized(shape, monkeypatch):
    """Resized as a whole to a height or width of 32 it would have up to 61 million pixels; its middle is seen."""
    resized, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: resized.append(a[0]) or resize(self, *a, **k))
    data = Pictures(1)
    data.images = [torch.full((3, *shape), 7, dtype=torch.uint8)]
    data.images[0][:, shape[0] // 2, shape[1] // 2] = 255
    image, _ = Resized(data, 16, crop_pct=0.5)[0]
    assert image.shape == (3, 16, 16) and image.max() > 7 and max(resized[-1]) == 8 * 32


def test_training_without_random_crops_is_rendered_with_its_interpolation():
    jitter = {"color_jitter": 1e-9}  # changes nothing
    got = shown(jitter | {"interpolation": "lanczos", "train_interpolation": "bicubic"})
    view = Resized(Pictures(), SIZE, interpolation="bicubic")
    assert all(torch.equal(a, view[i][0]) for i, a in enumerate(got))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"interpolation": "cubic"}, "interpolation must be one of bilinear, bicubic, .*, got 'cubic'"),
        ({"interpolation": "random"}, "interpolation must be one of .*, got 'random'"),
        ({"train_interpolation": "x"}, "train_interpolation must be one of .*random, got 'x'"),
        ({"train_interpolation": "random"}, "train_interpolation=random is for random crops: it needs crop_scale"),
        ({"remode": "white"}, "remode must be one of const, rand, pixel, got 'white'"),
        ({"crop_pct": 0.0}, r"crop_pct must be in \[0.1, 1\], got 0.0"),
        ({"crop_pct": float("nan")}, "crop_pct must be in"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be two numbers above 0, low and high, at most 1, got"),
        ({"crop_scale": (0.8, 0.2)}, "crop_scale must be two numbers"),
        ({"crop_scale": (0.5,)}, "crop_scale must be two numbers"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale must be two numbers"),
        ({**CROPS, "crop_ratio": (1, float("inf"))}, "crop_ratio must be two numbers above 0, low and high, finite"),
        ({"crop_ratio": (0.5, 2)}, "crop_ratio is of random crops: it needs crop_scale"),
        ({"auto_augment": "rand-x"}, "has the unknown part 'x'"),
        ({"color_jitter": -1.0}, "color_jitter must be at least 0, got -1"),
        ({"reprob": 1.5}, r"reprob must be in \[0, 1\], got 1.5"),
        ({"reprob": 0.5, "recount": 0}, "recount must be at least 1, got 0"),
        ({"aug_repeats": 0}, "aug_repeats must be at least 1, got 0"),
        ({"remode": "const"}, "remode is of random erasing: it needs a reprob above 0"),
        ({"recount": 2}, "recount is of random erasing: it needs a reprob above 0"),
    ],
)
def test_value_that_cannot_be_honoured_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ImageTransforms(**values)


def test_pad_and_random_crops_exclude_each_other():
    with pytest.raises(ValueError, match="pad and crop_scale are two ways to crop at random"):
        Augmented(Pictures(), SIZE, ImageTransforms(**CROPS), pad=0.1)
