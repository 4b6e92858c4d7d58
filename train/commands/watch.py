"""The running answer of a causal video model while a file decodes, in memory that does not grow with the video.

The model sees one frame after the other, at the rate, size and brightness of its training; see models/stream.py.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s4nd import frozen
from s4nd.models import Stream, stream
from s4nd.models.convnext3d import TEMPORAL_PATCH

from ..checkpoint import load_model
from ..data import BadVideo, Clips
from ..data.clips import frames_at
from ..data.video import read_frames
from ..data.video_sets import ListedVideos
from ..model import to_input

__all__ = ["Top", "watch"]

MAX_FRAMES = 2**22  # seen of one video: a day at 48 a second; a file may claim any duration

Top = list[tuple[str, float]]  # classes and probabilities, the likeliest first


def watch(
    checkpoint: str | Path, video: str | Path, show: Callable[[float, Top], None], every: int = 1, top: int = 5
) -> None:
    """Run a model over a video; there is an answer, to all frames so far, after every patch of 2 of them.

    Args:
        checkpoint: of `s4nd train`, of a model with model.args causal=true and num_frames=0.
        show: called with the instant of the last frame, in seconds, and the `top` likeliest classes.
        every: show every so many answers; the last one is always shown.

    Raises:
        FileNotFoundError: no such checkpoint or video.
        ValueError: as `load_model` and `stream`; a model of images, of a multi-label task or trained with
            data.motion, or numbers below 1.
        BadVideo: it cannot be read, does not say when its frames are shown, or is too short or too long. If it is damaged
            further on, answers up to there have been shown.
    """
    if min(every, top) < 1:
        raise ValueError(f"every and top must be at least 1, got {every} and {top}")
    model, config, meta = load_model(checkpoint)
    if meta.task != "single-label":
        raise ValueError(f"watch shows the likeliest of several classes, and {checkpoint} is {meta.task}")
    run, sampling = stream(model), config.data.sampling()
    if sampling is None:
        raise ValueError(
            f"watch needs a model trained on videos, {checkpoint} was trained on the images of {config.data.name}"
        )
    if sampling.motion:
        raise ValueError(
            f"watch sees frames one by one; a model trained with data.motion={sampling.motion} needs whole clips"
        )
    video = Path(video)
    if not video.is_file():
        raise FileNotFoundError(f"no video {video}")
    videos = ListedVideos(video.parent, meta.classes, [video.name], [0])
    view = Clips(videos, config.stages[meta.stage].size, sampling, train=False)
    watcher = _Watcher(run, view, lambda seconds, p: show(seconds, _likeliest(p, meta.classes, top)), every)
    with frozen(model):
        read_frames(video, watcher.pick, watcher.render, side=view.size)
    watcher.finish()


class _Watcher:
    """The two functions that `read_frames` calls, with the state of the model between them.

    Args:
        view: of the one video; says how it is sampled and rendered.
        show: called with the instant in seconds and the probabilities (num_classes,).
    """

    def __init__(self, run: Stream, view: Clips, show: Callable[[float, Tensor], None], every: int):
        self.run, self.view, self.show, self.every = run, view, show, every
        self.state: dict[str, Tensor] | None = None
        self.seen = 0
        self.waiting: tuple[float, Tensor] | None = None

    def pick(self, times: np.ndarray) -> np.ndarray:
        """Frames (n,) of the file, each at the middle of its share of the time, as in training."""
        path, sampling = self.view.dataset.paths[0], self.view.sampling
        share = sampling.seconds / sampling.frames
        n = math.ceil(times[-1] / share - 0.5)
        if not TEMPORAL_PATCH <= n <= MAX_FRAMES:
            rate = f"{sampling.frames / sampling.seconds:g} a second, the rate of the training"
            raise BadVideo(path, f"{n} frames at {rate}; needed are {TEMPORAL_PATCH} to {MAX_FRAMES}")
        indices = frames_at(times, (np.arange(n) + 0.5) * share)
        self.repeats = iter(np.unique(indices, return_counts=True)[1])  # how often each frame is seen
        return indices

    @torch.no_grad()
    def render(self, frames: Tensor) -> Tensor:
        """The model sees the next frames (m, 3, H, W) uint8; nothing is left of them: (m, 3, 0, 0)."""
        for frame in frames.unsqueeze(1):
            x = to_input(self.view.render(frame), self.run.model, torch.device("cpu"))
            for _ in range(next(self.repeats)):
                logits, self.state = self.run(x, self.state)
                self.seen += 1
                if logits is not None and self.seen % TEMPORAL_PATCH == 0:
                    self._answer(logits)
        return frames[:, :, :0, :0]

    def finish(self) -> None:
        """Show the last answer, if it has not been."""
        if self.waiting is not None:
            self.show(*self.waiting)

    def _answer(self, logits: Tensor) -> None:
        sampling = self.view.sampling
        answer = (self.seen - 0.5) * sampling.seconds / sampling.frames, logits[0].softmax(-1)
        self.waiting = answer
        if self.seen // TEMPORAL_PATCH % self.every == 0:
            self.show(*answer)
            self.waiting = None


def _likeliest(p: Tensor, classes: list[str], top: int) -> Top:
    values, indices = p.topk(min(top, len(classes)))
    return [(classes[i], value) for i, value in zip(indices.tolist(), values.tolist(), strict=True)]
