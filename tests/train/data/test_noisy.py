"""Noisy images against the same images without noise, and their noise against what a normal number is."""

import math

import pytest
import torch

from s4nd.train.data import BadImage, ClipSampling, ImageDataset, ImageTransforms, Rendering, make_loader

MOVED = Rendering(hflip=True, pad=0.25, noise=20)


class Grey(ImageDataset):
    """Images of one grey level each, in three slightly different channels."""

    def __init__(self, *levels):
        self.levels, self.classes, self.labels = levels, ["a"], torch.zeros(len(levels), dtype=torch.int64).numpy()

    def __getitem__(self, index):
        channels = torch.tensor([self.levels[index]]).expand(3)
        return channels[:, None, None].repeat(1, 64, 64).to(torch.uint8), 0


def batches(dataset, size=8, count=4, **options):
    return list(make_loader(dataset, size, count, **options))


def residuals(*args, **options):
    return torch.cat([residual for _, residual in batches(*args, **options)])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "transforms", [{}, {"color_jitter": 0.3}, {"crop_scale": [0.3, 1], "interpolation": "bicubic"}]
)
def test_image_and_residual_are_the_clean_image_as_the_view_makes_it(numbered, train, transforms):
    """Exactly, flipped, shifted and coloured: the noise comes last."""
    pad = 0 if "crop_scale" in transforms else 0.25
    clean, noisy = (
        Rendering(hflip=True, pad=pad, transforms=ImageTransforms(**transforms), noise=noise) for noise in (None, 20)
    )
    options = {"train": train, "seed": 3, "epoch": 2}
    for (image, _), (shown, residual) in zip(
        batches(numbered(20), rendering=clean, **options),
        batches(numbered(20), rendering=noisy, **options),
        strict=True,
    ):
        assert shown.dtype == torch.uint8 and residual.dtype == torch.int16 and residual.shape == image.shape
        assert torch.equal(shown + residual, image.to(torch.int16)) and residual.any()


def test_noise_is_white_and_of_the_deviation_that_was_asked_for():
    """20 images of 4,096 pixels each; rounding adds 1 / 12 of a squared grey level. Bounds are five standard errors."""
    noise = -residuals(Grey(*[128] * 20), 64, train=False, rendering=Rendering(noise=10))
    assert torch.equal(noise[:, 0], noise[:, 1]) and torch.equal(noise[:, 0], noise[:, 2])  # of the light
    noise = noise[:, 0].double()
    count = noise.numel()
    assert noise.mean().abs() < 5 * 10 / math.sqrt(count)
    assert (noise.std() - math.sqrt(100 + 1 / 12)).abs() < 5 * 10 / math.sqrt(2 * count)
    kurtosis = (noise / noise.std()).pow(4).mean()
    assert (kurtosis - 3).abs() < 5 * math.sqrt(24 / count)
    for neighbours in (noise[..., 1:] * noise[..., :-1], noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1]):
        assert neighbours.mean().abs() < 5 * 100 / math.sqrt(neighbours.numel())


def test_pixels_are_clipped_as_a_camera_does():
    """Half of the noise takes a black pixel below black, where it stays, and a white one above white."""
    black, white = residuals(Grey(0, 255), 64, train=False, rendering=Rendering(noise=50))
    assert (black <= 0).all() and (white >= 0).all()
    for residual in (black[0], white[0]):
        assert abs((residual == 0).double().mean() - 0.5 - 0.5 / 50 / math.sqrt(2 * math.pi)) < 5 * 0.5 / 64


def test_noise_of_training_follows_from_seed_epoch_and_item_alone(numbered):
    """Whatever is drawn or read before, in any batches: of two epochs, seeds or repetitions none is alike."""

    def of(seed, epoch, *indices):
        view = MOVED.training(numbered(10), 8, seed, epoch)
        return torch.stack([residual for _, residual in view.__getitems__(list(indices))])

    alone = of(3, 2, 7)
    torch.rand(1)
    assert torch.equal(of(3, 2, 1, 7, 4)[1], alone[0])
    others = [of(4, 2, 7), of(3, 3, 7), of(3, 2, 6), of(2, 3, 7)]
    assert not any(torch.equal(other, alone) for other in others)
    repeated = Rendering(noise=20, transforms=ImageTransforms(aug_repeats=2)).training(numbered(10), 8, 3, 2)
    (shown, first), (again, second) = repeated.__getitems__([7, 17])
    assert torch.equal(shown + first, again + second) and not torch.equal(first, second)


def test_every_evaluation_sees_the_same_noise_and_each_size_its_own(numbered):
    one = residuals(numbered(10), train=False, rendering=MOVED, seed=1, epoch=0)
    assert torch.equal(one, residuals(numbered(10), train=False, rendering=MOVED, seed=2, epoch=5, count=3))
    assert len({tuple(residual.flatten().tolist()) for residual in one}) == 10
    first_row = [residuals(Grey(128), size, train=False, rendering=MOVED)[0, 0, 0, :8] for size in (8, 9)]
    assert (first_row[0] == first_row[1]).sum() < 4  # by chance one in 70
    trained = residuals(numbered(10), train=True, rendering=Rendering(noise=20), count=10)
    assert not any(torch.equal(a, b) for a in one for b in trained)


@pytest.mark.parametrize("train", [True, False])
def test_workers_and_processes_change_no_noise(numbered, train):
    options = {"train": train, "rendering": MOVED, "seed": 3, "epoch": 2}
    alone = batches(numbered(24), **options)
    for one, other in zip(alone, batches(numbered(24), workers=2, **options), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    shared = [batches(numbered(24), count=2, rank=rank, world_size=2, **options) for rank in (0, 1)]
    found = torch.cat([residual for part in shared for _, residual in part])
    expected = torch.cat([residual for _, residual in alone])
    assert sorted(map(str, found.tolist())) == sorted(map(str, expected.tolist()))


def test_image_that_cannot_be_read_is_left_out(numbered):
    loader = make_loader(numbered(6, bad=(1,), name="noisy"), 8, 6, train=False, rendering=MOVED, skip_bad=True)
    ((images, residual),) = loader
    assert len(images) == len(residual) == 5 and loader.unreadable == 1
    alone = make_loader(numbered(1, bad=(0,), name="noisy, alone"), 8, 6, train=False, rendering=MOVED, skip_bad=True)
    assert list(alone) == []
    with pytest.raises(BadImage):
        batches(numbered(6, bad=(1,)), train=False, rendering=MOVED)


def test_clips_take_no_noise():
    with pytest.raises(ValueError, match="noise is of images; clips are sampled, got 20"):
        Rendering(sampling=ClipSampling(), noise=20)
