"""What `s4nd watch` prints against the whole model on the same frames, read by the clips of testing; and what it refuses."""

import re
import weakref
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch

from s4nd.train.checkpoint import Meta, load_model, save_checkpoint
from s4nd.train.cli import main
from s4nd.train.commands.watch import watch
from s4nd.train.config import config_from_dict
from s4nd.train.data import BadVideo, Clips, ClipSampling
from s4nd.train.data.film import Film
from s4nd.train.data.video import Video
from s4nd.train.data.video_sets import ListedVideos
from s4nd.train.model import build_model, to_input

av = pytest.importorskip("av", reason="needs the extra: pip install 's4nd[video]'")

CLASSES = ["jump", "rün", "sit"]
SMALL = dict(depths=[1, 1, 1, 1], dims=[8, 8, 8, 16], d_state=8)
CAUSAL = dict(causal=True, num_frames=0)
FRAMES, SIZE, GAMMA = 12, 40, 0.4


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(frames=4, seconds=2.0, model=..., data="video", motion=None, **args of the model) -> path."""

    def write(frames=4, seconds=2.0, model="s4nd_convnext3d_tiny", data="video", motion=None, **args):
        torch.manual_seed(0)
        clips = {"frames": frames, "seconds": seconds, "gamma": GAMMA, "motion": motion}
        source = {"name": data} | (clips if data == "video" else {})
        tree = {"data": source, "model": {"name": model, "args": args or SMALL | CAUSAL}, "stages": [{"size": SIZE}]}
        config = config_from_dict(tree, "the test")
        built = build_model(config, len(CLASSES))
        if hasattr(built, "head"):
            torch.nn.init.normal_(built.head.fc.weight)  # answers that change from frame to frame
        path = tmp_path / f"{model}.safetensors"
        save_checkpoint(path, built.state_dict(), config, Meta(1, 0, 0.5, CLASSES, "model"))
        return path

    return write


@pytest.fixture
def video(shared):
    return sorted((shared / "data" / "videos" / "arid6" / "val" / "Walk").glob("*.mp4"))[0]


def duration(path):
    with Film(path) as film:
        return float(film.times[-1])


@torch.no_grad()
def offline(path, video, frames, seen):
    """Probabilities (num_classes,) of the whole model on the first of so many frames of the video, as testing reads them."""
    model = load_model(path)[0]
    view = Clips(
        ListedVideos(video.parent, CLASSES, [video.name], [0]),
        SIZE,
        ClipSampling(frames, duration(video), clips=1, gamma=GAMMA),
        train=False,
    )
    clips = view.testing_clips(str(video))
    return model(to_input(clips[:, :, :seen], model, torch.device("cpu")))[0].softmax(-1)


@pytest.mark.parametrize("frames", [FRAMES, FRAMES + 1, 160])  # an odd one does not count; each frame twice or so
def test_every_answer_is_the_whole_model_on_the_frames_so_far(frames, checkpoint, video):
    path, shown = checkpoint(4, 4 * duration(video) / frames), []
    watch(path, video, lambda seconds, top: shown.append((seconds, dict(top))))
    assert len(shown) == frames // 2
    compared = {i: offline(path, video, frames, 2 * i + 2) for i in (0, 1, len(shown) // 2, len(shown) - 1)}
    for i, p in compared.items():
        seconds, top = shown[i]
        assert seconds == pytest.approx((2 * i + 1.5) * duration(video) / frames)
        assert list(top.values()) == sorted(top.values(), reverse=True)
        # stream's logits are within 1e-4 of the largest, and p changes by at most half of what logits do.
        found = torch.tensor([top[name] for name in CLASSES])
        torch.testing.assert_close(found, p, rtol=0, atol=1e-4 * p.log().abs().max().item())
    assert (compared[0] - compared[len(shown) - 1]).abs().max() > 1e-3


def test_lines_are_every_nth_answer_and_the_last(checkpoint, video, capsys):
    path = checkpoint(4, 4 * duration(video) / FRAMES)
    assert main(["watch", str(path), str(video), "--every", "4", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    share = duration(video) / FRAMES
    assert [line.split(" s ")[0].strip() for line in lines] == [f"{7.5 * share:.2f}", f"{11.5 * share:.2f}"]
    p = offline(path, video, FRAMES, FRAMES)
    best = "  ".join(f"{CLASSES[i]} {100 * p[i]:.1f} %" for i in p.argsort(descending=True)[:2])
    assert lines[-1].endswith(f" s  {best}")


def test_times_are_those_of_the_video_and_end_where_it_ends(checkpoint, tmp_path):
    """Ten pictures in 5 s, then fifty in half a second: 5.5 s, of which the frames of the training, 4 a second, are 22."""
    path = tmp_path / "-a:b.mp4"
    times = [500 * i if i < 10 else 5000 + 10 * (i - 10) for i in range(60)]
    with av.open(f"file:{path}", "w") as file:
        stream = file.add_stream("libx264", rate=30, width=64, height=64, pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        for t in times:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), t % 251, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    shown = []
    watch(checkpoint(8, 2.0), path, lambda seconds, top: shown.append(seconds))
    assert shown == pytest.approx([(2 * i + 1.5) / 4 for i in range(11)])


def test_memory_does_not_grow_with_the_video(checkpoint, video, monkeypatch):
    """Of the decoded frames two at most are there at once: the one that the model sees, and the next one."""
    made, there = [], []
    frames = Video.frames

    def watched(self, indices):
        for frame in frames(self, indices):
            made.append(weakref.ref(frame))
            there.append(sum(ref() is not None for ref in made))
            yield frame

    monkeypatch.setattr(Video, "frames", watched)
    watch(checkpoint(4, 4 * duration(video) / FRAMES), video, lambda *_: None)
    assert len(there) == FRAMES and max(there) <= 2


def test_answers_up_to_the_damage_are_shown(checkpoint, video, monkeypatch):
    frames, shown = Video.frames, []

    def damaged(self, indices):
        yield from islice(frames(self, indices), 5)
        raise BadVideo(self.path, "damaged")

    monkeypatch.setattr(Video, "frames", damaged)
    with pytest.raises(BadVideo, match="damaged"):
        watch(checkpoint(4, 4 * duration(video) / FRAMES), video, lambda seconds, top: shown.append(seconds))
    assert len(shown) == 2


def test_video_that_breaks_off_is_an_error_that_names_it(checkpoint, shared, capsys):
    path = shared / "data" / "videos" / "originals" / "misc" / "decord_corrupted.mp4"
    assert main(["watch", str(checkpoint(8, 0.5)), str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"s4nd: error: {path}: ")


@pytest.mark.parametrize(
    "options, arguments, message",
    [
        (dict(**SMALL), [], "stream needs time to be causal"),
        (dict(**SMALL, causal=True), [], "stream needs time that extends"),
        (
            dict(model="convnext_i3d_tiny", depths=[1, 1, 1, 1], dims=[8, 8, 8, 16]),
            [],
            "stream needs an S4NDConvNeXt3d",
        ),
        (dict(data="photos"), [], "needs a model trained on videos, .* was trained on the images of photos"),
        (dict(motion="changes"), [], "data.motion=changes needs whole clips"),
        ({}, ["--every", "0"], "every and top must be at least 1, got 0 and 5"),
        ({}, ["--top", "0"], "every and top must be at least 1, got 1 and 0"),
        (dict(frames=1, seconds=1e4), [], "0 frames at 0.0001 a second, .* needed are 2 to "),
        (dict(frames=1, seconds=1e-7), [], r"frames at 1e\+07 a second, .* needed are 2 to "),
    ],
)
def test_mistake_is_one_line(options, arguments, message, checkpoint, video, capsys):
    assert main(["watch", str(checkpoint(**options)), str(video), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("s4nd: error: ") and err.count("\n") == 1 and re.search(message, err)


def test_file_that_is_absent_or_no_video_is_refused(checkpoint, tmp_path, capsys):
    path, text = checkpoint(), tmp_path / "text.mp4"
    text.write_text("not a video")
    for video, message in ((text, f"{text}: not a video"), (tmp_path / "none.mp4", "no video ")):
        assert main(["watch", str(path), str(video)]) == 2
        assert capsys.readouterr().err.startswith(f"s4nd: error: {message}")
