"""Views of what moves against their formulas, and what they hide."""

import torch

from s4nd.train.data.motion import GREY, MOTION_RANGE, STD, changes, moving


def test_motion_is_the_change_from_frame_to_frame_in_units_of_what_is_usual():
    frames = 255 * torch.rand(2, 4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    change = frames.double().mean(2).diff(dim=1).abs()
    usual = change.square().mean((1, 2, 3), keepdim=True).sqrt()
    expected = 255 * (change / (MOTION_RANGE * usual)).clamp(max=1).sqrt()
    expected = torch.cat([expected, expected[:, -1:]], 1)[:, :, None].expand(2, 4, 3, 9, 9)
    # Rounding to whole values; a float32 root moves a value by less than another thousandth.
    assert (changes(frames) - expected).abs().max() <= 0.5 + 1e-3


def test_what_moves_is_the_frames_less_their_mean_in_one_contrast():
    frames = 255 * torch.rand(2, 4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    frames[:, :, :, :3] = frames[:, :1, :, :3]
    change = frames.double() - frames.double().mean(1, keepdim=True)
    expected = GREY + change * (STD / change.square().mean((1, 3, 4), keepdim=True).sqrt())
    # Rounding to whole values; float32 moves a value by less than another thousandth.
    assert (moving(frames) - expected.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
    assert (moving(frames)[:, :, :, :3] == GREY).all()


def test_motion_does_not_tell_scene_light_or_contrast():
    scene, change = (torch.randint(n, (1, 3, 9, 9), dtype=torch.uint8) for n in (40, 4))
    change = change * torch.arange(5, dtype=torch.uint8)[:, None, None, None]
    shown = changes(change)
    assert torch.equal(changes(change + scene), shown)
    # Grey means of three whole values are exact to float32's rounding, which can move a value across a half.
    assert (changes(5 * (change + scene)).int() - shown.int()).abs().max() <= 1
    assert not changes(scene.expand(5, 3, 9, 9)).any()
