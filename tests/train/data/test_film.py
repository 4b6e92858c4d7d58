"""Frames that carry their numbers, in what FFmpeg writes: each request against the number written and a forward read."""

import contextlib
import os
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from s4nd.train.data import BadVideo, film
from s4nd.train.data.film import Film
from s4nd.train.data.timeline import PacketTimes, timeline
from s4nd.train.data.video import read_frames

av = pytest.importorskip("av", reason="needs PyAV, the extra `video`")

COUNT, FPS, BITS = 60, 30, 6
# Codec: encoder, pixel format, options, containers.
TABLE = {
    "h264": ("libx264", "yuv420p", {}, "mp4 mov m4v mkv avi ts mpg wmv flv"),
    "h264, open": ("libx264", "yuv420p", {"x264-params": "open-gop=1:scenecut=0"}, "mp4 mkv avi ts"),
    "h264, refreshed by columns": ("libx264", "yuv420p", {"x264-params": "intra-refresh=1"}, "mp4 mkv avi ts"),
    "hevc": ("libx265", "yuv420p", {"x265-params": "log-level=none"}, "mp4 mov mkv ts mpg"),
    "mpeg4": ("mpeg4", "yuv420p", {}, "mp4 mkv avi ts"),
    "mpeg2": ("mpeg2video", "yuv420p", {}, "mpg mpeg ts avi mkv mp4 wmv"),
    "mpeg1": ("mpeg1video", "yuv420p", {}, "mpg mpeg"),
    "vp8": ("libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}, "webm mkv avi"),
    "vp9": ("libvpx-vp9", "yuv420p", {"lag-in-frames": "16", "cpu-used": "8"}, "webm mkv mp4"),
    "av1": ("libsvtav1", "yuv420p", {"preset": "10", "crf": "20"}, "mp4 mkv"),
    "wmv2": ("wmv2", "yuv420p", {}, "wmv avi"),
    "msmpeg4": ("msmpeg4", "yuv420p", {}, "avi"),
    "mjpeg": ("mjpeg", "yuvj420p", {}, "avi mov mkv"),
    "ffv1": ("ffv1", "yuv420p", {}, "mkv avi"),
}
REORDERED = ("h264", "h264, open", "hevc", "mpeg4", "mpeg2", "mpeg1")
CASES = [
    (codec, container, gop, b_frames)
    for codec, (*_, containers) in TABLE.items()
    for container in containers.split()
    for gop, b_frames in product((7, 30), (0, 3) if codec in REORDERED else (0,))
]


def bars(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A picture that says its number: white bars for the bits that are set."""
    picture = np.full((height, width, 3), 16, dtype=np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[:, bit * width // BITS : (bit + 1) * width // BITS] = 235
    return picture


def number(picture: torch.Tensor) -> int:
    """The number that a picture (3, H, W) says."""
    columns = picture.float().mean((0, 1))
    bits = [columns[bit * len(columns) // BITS :][: len(columns) // BITS].mean() > 126 for bit in range(BITS)]
    return sum(1 << bit for bit in range(BITS) if bits[bit])


@contextlib.contextmanager
def same_scheduling():
    """libsvtav1 makes the thread that calls it a real-time one where it may, as root, and its busy waits starve all others."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def encode(
    path,
    codec="libx264",
    pix_fmt="yuv420p",
    options=None,
    gop=12,
    b_frames=0,
    pts=None,
    packets=None,
    shown=lambda i: i,
    **context,
):
    """Write COUNT frames that show the numbers shown(i), and return the path.

    Args:
        packets: (place, packet) in the order of decoding -> the packet to write, or None for none.
        context: attributes of the encoder's context.
    """
    with same_scheduling(), av.open(str(path), "w") as file:
        out = file.add_stream(codec, rate=FPS, width=96, height=64, pix_fmt=pix_fmt)
        out.options = {"threads": "1"} | (options or {})
        for key, value in {"gop_size": gop, "max_b_frames": b_frames, **context}.items():
            setattr(out.codec_context, key, value)
        if pts is not None:
            out.codec_context.time_base = Fraction(1, 1000)
        place = 0
        for i in range(COUNT + 1):
            frame = av.VideoFrame.from_ndarray(bars(shown(i)), format="rgb24") if i < COUNT else None
            if frame is not None and pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            for packet in out.encode(frame):
                packet = packets(place, packet) if packets else packet
                place += 1
                if packet is not None:
                    file.mux(packet)
    return path


def read(path, wanted, side=64):
    """The numbers of the frames of some indices, and the times of all."""
    told = []
    frames = read_frames(path, lambda times: told.append(times) or np.array(wanted), lambda frames: frames, side)
    return [number(frame) for frame in frames], told[0]


def forward(path):
    """The numbers of all frames in the order in which FFmpeg gives them."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return [number(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]


REQUESTS = [[0], [29], [30], [31], [COUNT - 1], [6, 7, 8, 13, 14], [3, 33, 58], [40, 12, 12, 59, 0]]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs a system with scheduling policies")
def test_encoders_leave_the_process_as_it_was(tmp_path):
    before = os.sched_getscheduler(0)
    encode(tmp_path / "x.mkv", *TABLE["av1"][:3])
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("codec, container, gop, b_frames", CASES)
def test_frames_asked_for_are_the_frames_returned(codec, container, gop, b_frames, tmp_path):
    encoder, pix_fmt, options, _ = TABLE[codec]
    extra = {"bf": str(b_frames)} if encoder in ("libx264",) else {}
    path = encode(tmp_path / f"x.{container}", encoder, pix_fmt, options | extra, gop, b_frames)
    assert forward(path) == list(range(COUNT))
    for wanted in REQUESTS:
        found, times = read(path, wanted)
        assert found == wanted
    assert len(times) == COUNT + 1 and times[0] == 0
    # MPEG-1 and -2 in Program Streams may have a field's rounding; Matroska and ASF have milliseconds.
    np.testing.assert_allclose(times[:-1], np.arange(COUNT) / FPS, rtol=0, atol=1.1e-3)


@pytest.mark.parametrize("name", ["x.mp4", "x.avi", "x.mkv"])
def test_file_that_is_too_large_to_keep_is_read_twice(name, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "KEPT_BYTES", 2000)
    path = encode(tmp_path / name, b_frames=2, gop=10)
    assert path.stat().st_size > 2000
    for wanted in REQUESTS:
        assert read(path, wanted)[0] == wanted


def test_only_what_is_needed_is_decoded(tmp_path):
    """Of six groups of ten frames: from the keyframe before it to the frame, and what the decoder holds back."""

    class Counting:
        def __init__(self, codec):
            self.codec, self.decoded = codec, 0

        def __getattr__(self, name):
            return getattr(self.codec, name)

        def decode(self, packet):
            self.decoded += packet is not None
            return self.codec.decode(packet)

    path = encode(tmp_path / "x.mp4", gop=10, options={"bf": "0", "x264-params": "scenecut=0"})
    with Film(path) as opened:
        assert [place for place, _ in opened.line.starts] == [0, 10, 20, 30, 40, 50]
        for wanted, most in (([34], 6), ([0, 59], 13), ([5], 7), ([11, 12, 41], 7)):
            opened.codec = counting = Counting(opened.codec)
            assert len(list(opened.frames(np.array(wanted)))) == len(wanted)
            assert counting.decoded <= most
            opened.codec = counting.codec


def test_keyframe_that_is_none_is_not_believed(tmp_path):
    """Every packet claims that decoding can begin there."""

    def claim(place, packet):
        packet.is_keyframe = True
        return packet

    for name, codec in (("x.mp4", "mpeg4"), ("x.avi", "wmv2"), ("x.wmv", "wmv2"), ("x.avi", "msmpeg4")):
        path = encode(tmp_path / name, codec, gop=30, packets=claim)
        with Film(path) as opened:
            assert len(opened.line.starts) == COUNT
        for wanted in REQUESTS:
            assert read(path, wanted)[0] == wanted


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("name, codec", [("x.ts", "libx264"), ("x.mpg", "mpeg2video"), ("x.ts", "mpeg2video")])
def test_recording_that_begins_within_a_group_of_pictures_is_read_as_forward(name, codec, b_frames, tmp_path):
    path = encode(tmp_path / name, codec, gop=20, b_frames=b_frames, packets=lambda i, p: p if i >= 5 else None)
    whole = forward(path)
    assert whole[0] > 5 and whole == list(range(whole[0], whole[-1] + 1))
    for i in (0, 1, 10, 11, 12, 13, 30, len(whole) - 1):
        assert read(path, [i])[0] == [whole[i]]


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_times_are_those_of_the_file_where_the_rate_varies(name, tmp_path):
    """A picture every 0.5 s, then 100 a second."""
    pts = [500 * i if i < 20 else 10_000 + 10 * (i - 20) for i in range(COUNT)]
    found, times = read(encode(tmp_path / name, pts=pts, b_frames=2), [0, 19, 20, 21, 59])
    assert found == [0, 19, 20, 21, 59]
    np.testing.assert_allclose(times[:-1], np.array(pts) / 1000, rtol=0, atol=1e-9)
    assert 10.4 <= times[-1] <= 10.39 + 1 / FPS  # PyAV writes the usual duration for the last frame of a Matroska file


def test_pictures_that_an_encoder_left_out_leave_the_times_of_the_others(tmp_path):
    """MPEG-4 in AVI: a packet of a header that says that no picture is coded, where the picture stays as it was."""

    def leave_out(place, packet):
        if place not in (20, 21, 22):
            return packet
        bits = "".join(f"{byte:08b}" for byte in bytes(packet)[4:12])
        header = 2 + bits.index("0", 2) - 2 + 1 + 1 + 5 + 1  # type, seconds, marker, 5 bits of 30 for the time, marker
        coded = bits[:header] + "0" + "0111111111111111"[: -(header + 1) % 8 or 8]
        empty = av.Packet(b"\0\0\1\xb6" + bytes(int(coded[i : i + 8], 2) for i in range(0, len(coded), 8)))
        empty.pts, empty.dts, empty.time_base, empty.stream = packet.pts, packet.dts, packet.time_base, packet.stream
        return empty

    path = encode(tmp_path / "x.avi", "mpeg4", gop=60, packets=leave_out, shown=lambda i: 19 if 19 <= i < 23 else i)
    assert len(forward(path)) == COUNT - 3
    found, times = read(path, [10, 19, 20, 22, 23, 40, 59])
    assert len(times) == COUNT + 1
    assert found[:2] == [10, 19] and found[2] == found[3] == 19 and found[4:] == [23, 40, 59]


@pytest.mark.parametrize("name", ["a:b.mp4", "-x.mp4", "http:x.mp4", "x %03d.mp4", "ü'\".mp4", "file:x.mp4"])
def test_any_name_is_a_file(name, tmp_path, monkeypatch):
    encode(tmp_path / "plain.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        assert read(path, [7])[0] == [7]


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nx.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile x.ts\n"],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.ts", "list.m3u8"])
def test_list_of_other_files_is_no_video(name, text, tmp_path):
    encode(tmp_path / "x.ts")
    (tmp_path / name).write_text(text)
    with pytest.raises(BadVideo, match=r"list\."):
        read(tmp_path / name, [0])


def test_sound_and_pictures_of_covers_are_no_video(tmp_path):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        file.mux(sound.encode(frame))
    with pytest.raises(BadVideo, match="it holds no video"):
        read(path, [0])


@pytest.mark.parametrize("aspect, shape", [(Fraction(4, 3), (64, 128)), (Fraction(1, 2), (128, 96)), (1, (64, 96))])
@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_pixels_that_are_not_square_are_stretched(name, aspect, shape, tmp_path):
    path = encode(tmp_path / name, sample_aspect_ratio=aspect)
    frames = read_frames(path, lambda times: np.array([21]), lambda frames: frames, 64)
    assert tuple(frames.shape[2:]) == shape and number(frames[0]) == 21


def test_pixels_beyond_belief_are_refused(tmp_path):
    with pytest.raises(BadVideo, match="its pixels are 20 times as wide as high"):
        read(encode(tmp_path / "x.mkv", sample_aspect_ratio=20), [0])


def test_display_matrix_turns_and_mirrors(tmp_path):
    """All eight: the corner that is white in the file is shown where the matrix puts it."""
    from s4nd.train.data.video import turned

    picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    height, width = picture.shape[:2]
    for a, b, c, d in [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [
        (0, s, t, 0) for s in (1, -1) for t in (1, -1)
    ]:
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        to_x, to_y = x * a + y * c, x * b + y * d
        to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
        shown = np.empty((to_y.max() + 1, to_x.max() + 1, 3), dtype=picture.dtype)
        shown[to_y, to_x] = picture
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14], dtype=np.int32) * 65536
        np.testing.assert_array_equal(turned(picture, matrix), shown)


def packets(*times):
    return [PacketTimes(i, *each) for i, each in enumerate(times)]


def test_frames_before_an_open_first_group_are_left_out():
    line = timeline(packets((5, 0, 1, True), (3, 1, 1, False), (4, 2, 1, False), (6, 3, 1, False)), reorders=True)
    assert line.timed and line.names.tolist() == [5, 6] and line.ticks.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    "times",
    [[(0, 0, 1, True), (1, 1, 1, False), (2, 2, 1, False)], [(0, 0, 1, True), (0, 1, 1, False), (5, 2, 1, False)]],
)
def test_times_in_the_order_of_decoding_or_repeated_are_not_believed(times):
    line = timeline(packets(*times), reorders=True)
    assert not line.timed and line.names.tolist() == [0, 1, 2] and line.ticks.tolist() == [0, 1, 2, 3]


def test_times_that_are_missing_follow_from_the_durations():
    line = timeline(packets((None, 10, 2, True), (None, None, 3, False), (None, 14, 2, False)), False)
    assert not line.timed and line.ticks.tolist() == [0, 2, 5, 7]


def test_file_without_any_time_is_refused():
    with pytest.raises(ValueError, match="it does not say when its frames are shown"):
        timeline(packets((None, None, 0, True), (None, None, 0, False)), False)
    with pytest.raises(ValueError, match="it holds no frames"):
        timeline([], False)
