"""Clips against videos whose frames are numbered by their grey values, and against slicing."""

import logging
from fractions import Fraction

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from s4nd.train.data import BadVideo, Clips, ClipSampling, Rendering, make_loader
from s4nd.train.data.clips import MAX_CLIPS, crop, frames_at
from s4nd.train.data.film import Film
from s4nd.train.data.motion import MOTION_RANGE
from s4nd.train.data.resized import render
from s4nd.train.data.video_sets import VideoDataset

pytest.importorskip("av", reason="needs PyAV, the extra `video`")


class Paths(VideoDataset):
    def __init__(self, *paths):
        self.paths, self.labels = np.array([str(path) for path in paths]), np.arange(len(paths))
        self.classes = [str(i) for i in range(len(paths))]


@pytest.fixture
def video(write_video):
    """video(count, fps=30) -> a data set of one video whose frame i is of grey 4 i."""
    return lambda count, fps=30: Paths(write_video("x.mp4", count, fps, noise=False, grey=lambda i: 4 * i))


def numbers(clip):
    """The frame numbers of a clip (..., 3, T, h, w); a codec keeps a flat grey to within 2 of 256, half a frame's step."""
    return (clip.float().mean((-4, -2, -1)) / 4).round().int().tolist()


def clips(dataset, size=16, train=False, **options):
    chosen = {key: options.pop(key) for key in ("hflip", "seed", "epoch") if key in options}
    return Clips(dataset, size, ClipSampling(**{"frames": 4, "seconds": 1.0, **options}), train=train, **chosen)


def test_frames_are_at_the_middle_of_their_shares_of_the_clip(video):
    """A clip of 40 frames in 8 shares of 5."""
    clip, _ = clips(video(40), frames=8, seconds=40 / 30)[0]
    assert clip.shape == (1, 3, 8, 16, 16) and clip.dtype == torch.uint8
    assert numbers(clip) == [[2, 7, 12, 17, 22, 27, 32, 37]]


@pytest.mark.parametrize("fps", [10, 20, 40])
def test_clip_lasts_as_long_at_every_frame_rate(video, fps):
    (found,) = numbers(clips(video(60, fps), clips=1)[0][0])
    start = (60 - fps) / 2  # the middle second
    assert found == [int(start + (k + 0.5) * fps / 4) for k in range(4)]


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_clips_last_as_long_as_they_should_where_the_rate_varies(name, tmp_path):
    """A screen that changes every half second for 10 s, then 100 times a second: grey says the time of each picture."""
    av = pytest.importorskip("av")
    times = [500 * i if i < 20 else 10_000 + 10 * (i - 20) for i in range(40)]
    grey = [16 + round(20 * t / 1000) for t in times]
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream("libx264", rate=30, width=64, height=64, pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        for t, value in zip(times, grey, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    data = Paths(tmp_path / name)
    with Film(tmp_path / name) as film:
        end = film.times[-1]
    assert 10.2 <= end <= 10.19 + 1 / 30  # PyAV writes the usual duration for the last frame of some containers
    for seconds, K in ((10.0, 2), (2.0, 6), (0.5, 21)):
        found = clips(data, seconds=seconds)[0][0].float().mean((1, 3, 4))  # (K, 4)
        starts = np.linspace(0, end - seconds, K)
        instants = starts[:, None] + (np.arange(4) + 0.5) * seconds / 4
        shown = np.array(grey)[np.searchsorted(times, 1000 * instants + 1, side="right") - 1]
        assert found.shape == (K, 4)
        assert np.abs(found.numpy() - shown).max() < 3  # a third of a step of half a second


def test_instant_at_which_a_frame_begins_means_that_frame_however_times_are_rounded():
    exact = np.arange(61) / 30
    for times in (exact, exact.round(3), np.floor(1000 * exact) / 1000, np.ceil(1000 * exact) / 1000):
        assert frames_at(times, exact[:-1]).tolist() == list(range(60))


@pytest.mark.parametrize("count, K", [(1, 1), (3, 1), (30, 1), (31, 2), (60, 2)])
def test_clips_cover_the_whole_video(video, count, K):
    found = numbers(clips(video(count), frames=30)[0][0])
    assert len(found) == K and {n for clip in found for n in clip} == set(range(count))


def test_long_video_gets_a_bounded_number_of_clips(video):
    clip, _ = clips(video(60), frames=1, seconds=1 / 30)[0]
    assert len(clip) == MAX_CLIPS


def test_number_of_clips_can_be_chosen(video):
    assert numbers(clips(video(60), frames=2, clips=3)[0][0]) == [[7, 22], [22, 37], [37, 52]]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_video_is_one_clip_of_all_frames_wanted(video, count):
    for train in (True, False):
        clip = clips(video(count), frames=6, train=train)[0][0]
        found = numbers(clip if train else clip[0])
        assert len(found) == 6 and set(found) == set(range(count)) and found == sorted(found)


def test_training_clips_begin_anywhere(video):
    data, starts = video(60), set()
    for epoch in range(40):
        found = numbers(clips(data, train=True, epoch=epoch)[0][0])
        assert [n - found[0] for n in found[1:]] in ([7, 15, 22], [7, 15, 23], [8, 15, 22], [8, 15, 23])
        starts.add(found[0])
    assert min(starts) < 8 and max(starts) > 27 and len(starts) > 12  # of 3 to 33


def test_a_clip_follows_from_seed_epoch_and_index_alone(write_video):
    data = Paths(*(write_video(f"{i}.mp4", 40) for i in range(3)))
    options = {"train": True, "hflip": True, "randaugment": 9, "seed": 1, "epoch": 2}
    torch.manual_seed(0)
    alone = clips(data, **options)[1][0]
    moved = torch.rand(1)
    torch.manual_seed(5)
    view = clips(data, **options)
    view[0], view[2]
    assert torch.equal(alone, view[1][0])
    torch.manual_seed(0)
    assert torch.equal(moved, torch.rand(1))  # the global generator stays as it was
    assert not torch.equal(alone, clips(data, **{**options, "epoch": 3})[1][0])


def test_flip_mirrors_every_frame_of_about_half_of_the_clips(video):
    data = video(8)
    flipped = 0
    for epoch in range(60):
        plain, mirrored = (clips(data, train=True, epoch=epoch, hflip=flag)[0][0] for flag in (False, True))
        view = clips(data, train=True, epoch=epoch, hflip=True)
        flipped += int(view.flip[0])
        assert torch.equal(plain.flip(-1) if view.flip[0] else plain, mirrored)
    assert 15 <= flipped <= 45  # 30 plus or minus 4 standard deviations


def test_randaugment_treats_all_frames_alike(write_video):
    """Of a still video every frame stays the same, as the same operations of the same strength leave it."""
    data = Paths(write_video("x.mp4", 1))
    for epoch in range(12):
        plain, clip = (clips(data, train=True, epoch=epoch, randaugment=m)[0][0] for m in (None, 20))
        assert (clip == clip[:, :1]).all() and clip.shape == plain.shape
    assert any(
        not torch.equal(*(clips(data, train=True, epoch=e, randaugment=m)[0][0] for m in (None, 20))) for e in range(5)
    )
    assert v2.RandAugment().num_ops == 2  # what the option's documentation says


def test_gamma_brightens_training_and_testing_alike(video):
    data = video(4)
    for train in (True, False):
        plain, bright = (clips(data, train=train, gamma=gamma)[0][0] for gamma in (1.0, 0.5))
        assert ((255 * (plain.double() / 255).sqrt()).round() == bright).all()


def test_gamma_is_taken_of_the_pixels_before_they_are_averaged():
    """Rounded first, the mean of 0 and 1 would be one of them."""
    dark = torch.tensor([0, 1], dtype=torch.uint8).expand(1, 3, 32, 16, 2).flatten(3)
    view = Clips(Paths("never read"), 8, ClipSampling(gamma=0.4), train=False)
    rendered = view.render(dark)[..., 2:-2]  # away from the ends, over which the filter reaches
    assert ((rendered.double() - round(255**0.6) / 2).abs() <= 1).all()


def test_central_crop_is_the_rendering_of_images():
    images = torch.randint(256, (3, 3, 21, 34), dtype=torch.uint8)
    assert torch.equal(crop(images, 8), render(list(images), 8))


def test_crop_reaches_every_place():
    images = torch.arange(20).repeat(1, 3, 10, 1).to(torch.uint8)
    lefts = [crop(images, 5, scale=2.0, place=(0, x))[0, 0, 0, 0].item() for x in np.linspace(0, 0.999, 99)]
    assert sorted(set(lefts)) == list(range(16))
    assert crop(images, 5, scale=2.0, place=(0.5, 0)).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_videos_are_skipped_in_training_and_errors_in_testing(write_video, caplog, workers):
    good = [write_video(f"{workers}-{i}.mp4", 12) for i in range(3)]
    bad = good[1]
    bad.write_text("hello")
    seen = Rendering(sampling=ClipSampling(frames=4, seconds=1.0))
    with caplog.at_level(logging.WARNING, logger="s4nd"):
        for epoch in range(2):
            batches = list(make_loader(Paths(*good), 16, 3, train=True, rendering=seen, epoch=epoch, workers=workers))
            assert [sorted(labels.tolist()) for _, labels in batches] == [[0, 2]]
            assert batches[0][0].shape == (2, 3, 4, 16, 16) and batches[0][0].dtype == torch.uint8
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == ["skipped a video that cannot be read"]
    assert str(bad) in caplog.text
    with pytest.raises(BadVideo, match=rf"{workers}-1\.mp4: not a video"):
        list(make_loader(Paths(*good), 16, 3, train=False, rendering=seen, workers=workers))


def test_testing_gives_a_video_at_a_time_with_all_its_clips(write_video):
    data = Paths(write_video("short.mp4", 10), write_video("long.mp4", 70))
    seen = Rendering(sampling=ClipSampling(frames=4, seconds=1.0))
    batches = list(make_loader(data, 16, 64, train=False, rendering=seen))
    assert [images.shape for images, _ in batches] == [(1, 3, 4, 16, 16), (3, 3, 4, 16, 16)]
    assert [labels.tolist() for _, labels in batches] == [[0], [1]]


def test_size_and_frames_must_be_positive(video):
    with pytest.raises(ValueError, match="size=0"):
        clips(video(3), size=0)
    with pytest.raises(ValueError, match="frames=0"):
        clips(video(3), frames=0)


@pytest.mark.parametrize("train", [True, False])
def test_motion_is_shown_in_place_of_the_frames(video, train):
    clip = clips(video(9), train=train, motion="changes")[0][0]
    plain = clips(video(9), train=train)[0][0]
    assert clip.shape == plain.shape and clip.dtype == torch.uint8
    clip = clip if train else clip[0]
    assert torch.equal(clip, clip[:1].expand_as(clip)) and torch.equal(clip[:, -1], clip[:, -2])
    # The whole frame brightens evenly: every change is about the usual one, 255 / 2; the codec keeps a grey to within 2 of 8.
    assert 255 * (6 / 10 / MOTION_RANGE) ** 0.5 < clip.float().mean() < 255 * (10 / 6 / MOTION_RANGE) ** 0.5


def test_motion_sees_changes_of_less_than_a_grey_value():
    """A clip that is a little brighter in its second frame: every fourth pixel by 1."""
    dark = torch.full((1, 3, 32, 32), 20, dtype=torch.uint8)
    brighter = dark.clone()
    brighter[..., ::2, ::2] += 1
    view = Clips(Paths("never read"), 16, ClipSampling(frames=2, gamma=0.5, motion="changes"), train=False)
    frames = view.render(torch.cat([dark, brighter]))
    step = 255 * ((21 / 255) ** 0.5 - (20 / 255) ** 0.5) / 4
    torch.testing.assert_close(frames.diff(dim=0)[..., 4:-4, 4:-4].mean().item(), step, rtol=1e-3, atol=0)
