"""Rendering against torchvision in floating point, and flips and shifts against slicing."""

import pytest
import torch
import torch.nn.functional as F

from s4nd.train.data import BadImage, Resized
from s4nd.train.data.resized import flip_and_shift, mix, render


@pytest.mark.parametrize("size", [1, 5, 16, 24, 40])
def test_square_images_are_resized_with_antialiasing(numbered, size):
    """Within a grey level of interpolation in float32: the two round once, and the integer weights of the CPU have 8 bits."""
    image = numbered(1, 24, 24)[0][0]
    exact = F.interpolate(image[None].float(), size=(size, size), mode="bilinear", antialias=True)[0]
    assert (render([image], size)[0].float() - exact).abs().max() <= 1


@pytest.mark.parametrize("height, width", [(10, 30), (30, 10), (11, 30), (1, 60_000)])
def test_central_square_is_what_is_seen(height, width):
    side = min(height, width)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[:, top : top + side, left : left + side] = 200
    assert (render([image], 8) == 200).all()


def test_image_at_its_own_size_is_unchanged(numbered):
    image = numbered(1, 16, 16)[0][0]
    assert torch.equal(render([image], 16)[0], image)


def test_images_of_several_sizes_are_rendered_as_each_alone(numbered):
    images = [numbered(5, side, side)[i][0] for i, side in enumerate((20, 12, 20, 16, 12))]
    together = render(images, 8)
    for i, image in enumerate(images):
        assert torch.equal(together[i], render([image], 8)[0])


@pytest.mark.parametrize("down, right", [(0, 0), (2, 1), (-2, 3), (4, -4)])
@pytest.mark.parametrize("flip", [False, True])
def test_flip_and_shift_equal_a_crop_of_the_reflected_picture(down, right, flip):
    image = torch.rand(1, 3, 6, 6)
    mirrored = image.flip(-1) if flip else image  # first, so that a shift to the right is one in what is seen
    padded = F.pad(mirrored, (4, 4, 4, 4), mode="reflect")
    got = flip_and_shift(image, torch.tensor([flip]), torch.tensor([[down, right]]))
    assert torch.equal(got, padded[..., 4 - down : 10 - down, 4 - right : 10 - right])


def test_shift_by_the_whole_picture_stays_in_it():
    images = torch.rand(1, 3, 4, 4)
    for shift in (-4, 4):
        assert flip_and_shift(images, torch.tensor([False]), torch.tensor([[shift, shift]])).isfinite().all()


def test_augmentation_depends_on_seed_epoch_and_index_alone(numbered):
    def view(seed=0, epoch=0):
        return Resized(numbered(30), 12, hflip=True, pad=0.25, seed=seed, epoch=epoch)

    reference = view()
    alone = [reference[i][0] for i in range(30)]
    backwards = view().__getitems__(list(range(29, -1, -1)))[::-1]
    assert all(torch.equal(image, item[0]) for image, item in zip(alone, backwards, strict=True))
    for other in (view(seed=1), view(epoch=1)):
        assert not all(torch.equal(image, other[i][0]) for i, image in enumerate(alone))
    assert not torch.equal(view(seed=1).shift, view(epoch=1).shift)


def test_half_of_the_images_are_flipped_and_all_shifts_occur(numbered):
    view = Resized(numbered(4000), 16, hflip=True, pad=0.125)
    assert 0.45 < view.flip.float().mean() < 0.55  # 6 standard deviations
    assert torch.unique(view.shift).tolist() == [-2, -1, 0, 1, 2]
    counts = torch.unique(view.shift, return_counts=True)[1] / view.shift.numel()
    assert ((counts - 0.2).abs() < 0.03).all()


def test_without_augmentation_images_are_plain(numbered):
    data = numbered(5)
    assert all(torch.equal(Resized(data, 12, epoch=3)[i][0], data[i][0]) for i in range(5))


def test_padding_does_not_alter_which_images_are_flipped(numbered):
    flips = [Resized(numbered(50), 8, hflip=True, pad=pad).flip for pad in (0.0, 0.25)]
    assert torch.equal(*flips)


def test_unreadable_image_raises_alone_and_is_marked_in_a_batch(numbered):
    view = Resized(numbered(3, bad=(1,)), 8)
    with pytest.raises(BadImage, match="image-1: damaged"):
        view[1]
    kinds = [isinstance(item, BadImage) for item in view.__getitems__([0, 1, 2])]
    assert kinds == [False, True, False]


@pytest.mark.parametrize("size, pad", [(0, 0), (8, -0.1), (8, 1.5)])
def test_impossible_size_or_pad_is_refused(numbered, size, pad):
    with pytest.raises(ValueError, match="size >= 1 and 0 <= pad <= 1"):
        Resized(numbered(2), size, pad=pad)


def test_seeds_of_neighbouring_epochs_and_purposes_differ():
    seeds = {mix(seed, epoch, purpose) for seed in range(5) for epoch in range(5) for purpose in ("order", "flips")}
    assert len(seeds) == 50 and all(0 <= seed < 2**63 for seed in seeds)
