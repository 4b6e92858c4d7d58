"""Decoding against what is known of each video: real ones, small ones written here, and files that are not whole."""

import os

import numpy as np
import pytest
import torch

from s4nd.train.data import BadVideo
from s4nd.train.data.video import MAX_PIXELS, read_frames

av = pytest.importorskip("av", reason="needs PyAV, the extra `video`")


def read(path, pick=lambda times: np.arange(len(times) - 1), render=lambda frames: frames, side=64):
    return read_frames(path, pick, render, side)


@pytest.fixture
def misc(shared):
    return shared / "data" / "videos" / "originals" / "misc"


def grey_of(frames):
    """The grey value of the right half of each frame, which is all of one grey."""
    return frames[..., frames.shape[-1] // 2 + 8 :].float().mean((1, 2, 3))


@pytest.mark.parametrize("name", ["x.mp4", "x.avi", "x.mkv", "x.webm", "x.mov"])
def test_each_frame_of_each_container_is_the_one_written(write_video, name):
    """A codec keeps a flat field to a few grey values; neighbours differ by 8."""
    frames = read(write_video(name, 20))
    assert frames.shape == (20, 3, 64, 80) and frames.dtype == torch.uint8
    assert (grey_of(frames) - 8 * torch.arange(20)).abs().max() < 4


@pytest.mark.parametrize("width", [16, 48, 62, 96, 98, 144, 192])
def test_narrow_frames_are_read_right_however_their_rows_are_padded(write_video, width):
    frames = read(write_video("x.mp4", 6, width=width, noise=False))
    assert frames.shape == (6, 3, 64, width)
    assert (frames.float().mean((1, 2, 3)) - 8 * torch.arange(6)).abs().max() < 4
    assert frames.float().std((1, 2, 3)).max() < 2


def test_indices_come_in_the_order_asked_for_repeated_and_clamped(write_video):
    path = write_video("x.mp4", 10)
    every = read(path)
    wanted = np.array([7, 2, 2, 99, -5, 0])
    assert torch.equal(read(path, lambda times: wanted), every[[7, 2, 2, 9, 0, 0]])


@pytest.mark.parametrize("fps", [1, 15, 24000 / 1001, 30, 240])
def test_time_of_every_frame_is_told(write_video, fps):
    told = []
    read(write_video("x.mp4", 12, fps=fps), lambda times: told.append(times) or np.array([0]))
    np.testing.assert_allclose(told[0], np.arange(13) / fps, rtol=0, atol=1e-4)


def test_single_frame_is_a_video(write_video):
    assert read(write_video("x.mp4", 1), lambda *_: np.arange(5)).shape == (5, 3, 64, 80)


def test_rotation_tag_is_respected(misc):
    """The camera's own picture, which PyAV gives, turned clockwise; the other way round its letters stand on their heads."""
    for angle in (0, 90):
        path = misc / f"decord_video_{angle}.mov"
        with av.open(str(path)) as container:
            raw = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert raw.shape == (320, 568, 3)
        upright = torch.from_numpy(np.rot90(raw, -angle // 90).copy()).permute(2, 0, 1)
        assert (read(path)[0].float() - upright).abs().mean() < 2  # colours are rounded at another place


def test_packed_frames_are_those_of_a_forward_read(misc):
    """XviD in AVI, as HMDB-51's: two frames in one packet, and a packet that holds none, in turn."""
    path = misc / "mmaction2_test.avi"
    with av.open(str(path)) as file:
        forward = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    for wanted in ([2], [3], [50, 51, 90], [0, 163]):
        frames = read(path, lambda times, wanted=wanted: np.array(wanted))
        for frame, i in zip(frames, wanted, strict=True):
            np.testing.assert_array_equal(frame.permute(1, 2, 0).numpy(), forward[i])


def test_huge_frames_are_decoded_small(misc):
    """1920 x 1080 is beyond MAX_PIXELS, and comes with its shorter side as wanted and its shape kept."""
    assert 1920 * 1080 > MAX_PIXELS
    seen = []
    path = misc / "ntu_S001C001P001R001A001_rgb.avi"
    small = read(path, lambda *_: np.array([50]), lambda x: seen.append(x.shape) or x, side=72)
    assert seen == [(1, 3, 72, 128)]
    large = read(path, lambda *_: np.array([50]), side=5000)
    assert large.shape == (1, 3, 1080, 1920)
    pooled = torch.nn.functional.avg_pool2d(large.float(), 15)
    assert (pooled - small).abs().mean() < 4  # another filter of the same picture; a wrong frame or aspect is far off


def test_memory_for_many_frames_is_that_of_few(write_video):
    seen = []
    read(write_video("x.mp4", 100), render=lambda x: seen.append(len(x)) or x[..., :1, :1])
    assert sum(seen) == 100 and max(seen) <= 32


def test_every_real_video_but_the_damaged_one_is_read(misc):
    for path in sorted(misc.iterdir()):
        if path.name == "decord_corrupted.mp4":
            with pytest.raises(BadVideo, match=r"decord_corrupted\.mp4: .*damaged"):
                read(path)
        else:
            frames = read(path, lambda times: np.linspace(0, len(times) - 2, 4).astype(int), lambda x: x[..., ::8, ::8])
            assert len(frames) == 4 and (frames.float().std() > 0 or path.name == "decord_unordered.mov")  # all white


@pytest.mark.parametrize(
    "content, reason", [(b"", "empty"), (b"hello\n" * 99, "not a video"), (bytes(5000), "not a video")]
)
def test_what_is_no_video_is_named(tmp_path, content, reason):
    (tmp_path / "text.mp4").write_bytes(content)
    with pytest.raises(BadVideo, match=rf"text\.mp4: .*{reason}"):
        read(tmp_path / "text.mp4")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(BadVideo, match=r"gone\.mp4: FileNotFoundError"):
        read(tmp_path / "gone.mp4")


@pytest.mark.parametrize("name", ["x.mp4", "x.avi", "x.mkv", "x.webm"])
@pytest.mark.parametrize("start", [True, False])
def test_half_a_file_is_read_as_far_as_it_goes_or_refused(write_video, name, start):
    path = write_video(name, 40)
    whole, data = read(path), path.read_bytes()
    half = path.with_name(f"half-{name}")
    half.write_bytes(data[: len(data) // 2] if start else data[len(data) // 2 :])
    try:
        frames = read(half)
    except BadVideo as error:
        assert str(half) in str(error)
    else:
        assert len(frames) < 40 and (grey_of(frames[:-1]) - grey_of(whole)[: len(frames) - 1]).abs().max() < 4


def test_real_clip_cut_in_half_is_refused(shared, tmp_path):
    path = next((shared / "data" / "videos" / "arid6" / "train" / "Jump").glob("*.mp4"))
    (tmp_path / "half.mp4").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadVideo, match="half"):
        read(tmp_path / "half.mp4")


def test_container_that_claims_more_frames_than_it_has_is_no_hang(write_video):
    """An AVI's header says in two places how many frames follow."""
    path = write_video("x.avi", 10)
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        assert int.from_bytes(data[place : place + 4], "little") == 10
        data[place : place + 4] = (10_000).to_bytes(4, "little")
    path.write_bytes(data)
    assert len(read(path)) == 10


def test_random_damage_gives_frames_or_a_bad_video(write_video):
    rng = np.random.default_rng(0)
    for name in ("x.mp4", "x.avi", "x.mkv"):
        path = write_video(name, 20)
        data = path.read_bytes()
        for _ in range(10):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 30):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                assert read(path).shape[1] == 3
            except BadVideo as error:
                assert error.reason and "\n" not in error.reason


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_videos_opened(write_video):
    """300 opens after 100: a reader that stayed would keep its frames, 300 times 15 KB and its decoder, over 30 MB."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    path = write_video("x.mp4", 20)
    for i in range(400):
        if i == 100:
            before = resident()
        read(path)
    assert resident() - before < 15 * 2**20
