"""The running answer of a causal video model while a file decodes, in memory that does not grow with the video.

The model sees one frame after the other, at the rate, size and brightness of its training; see models/stream.py.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s4nd import frozen
from s4nd.models import Stream, stream
from s4nd.models.convnext3d import TEMPORAL_PATCH

from ..checkpoint import load_model
from ..data import BadVideo, Clips, ClipSampling
from ..data.clips import frames_at
from ..data.video import Video, as_images, open_video
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
    last = None
    with frozen(model), torch.no_grad(), open_video(video, view.size) as opened:
        for number, (seconds, p) in enumerate(_answers(run, view, opened), 1):
            last = seconds, _likeliest(p, meta.classes, top)
            if number % every == 0:
                show(*last)
                last = None
    if last is not None:
        show(*last)


def _answers(run: Stream, view: Clips, video: Video) -> Iterator[tuple[float, Tensor]]:
    """After every patch of frames the instant of the last one, in seconds, and the probabilities (num_classes,).

    Args:
        view: of the one video; says how it is sampled and rendered.
    """
    order, repeats = np.unique(_seen_frames(video, view.sampling), return_counts=True)
    share, seen = view.sampling.seconds / view.sampling.frames, 0
    state: dict[str, Tensor] | None = None
    for frame, times in zip(video.frames(order), repeats, strict=True):
        x = to_input(view.render(as_images([frame])), run.model, torch.device("cpu"))
        for _ in range(times):
            logits, state = run(x, state)
            seen += 1
            if logits is not None and seen % TEMPORAL_PATCH == 0:
                yield (seen - 0.5) * share, logits[0].softmax(-1)


def _seen_frames(video: Video, sampling: ClipSampling) -> np.ndarray:
    """Frames (n,) of the file that the model sees, each at the middle of its share of the time, as in training.

    Raises:
        BadVideo: it is too short or too long.
    """
    share = sampling.seconds / sampling.frames
    n = math.ceil(video.times[-1] / share - 0.5)
    if not TEMPORAL_PATCH <= n <= MAX_FRAMES:
        rate = f"{sampling.frames / sampling.seconds:g} a second, the rate of the training"
        raise BadVideo(video.path, f"{n} frames at {rate}; needed are {TEMPORAL_PATCH} to {MAX_FRAMES}")
    return frames_at(video.times, (np.arange(n) + 0.5) * share)


def _likeliest(p: Tensor, classes: list[str], top: int) -> Top:
    values, indices = p.topk(min(top, len(classes)))
    return [(classes[i], value) for i, value in zip(indices.tolist(), values.tolist(), strict=True)]
