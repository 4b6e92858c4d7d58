"""Decoding of video files from outside, which are never trusted, by decord (the package decord2)."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .images import BadImage

MAX_PIXELS = 2**19  # of a frame in memory; larger ones are decoded at a smaller size
AT_ONCE = 32  # frames decoded before they are rendered: 50 MB at MAX_PIXELS


class BadVideo(BadImage):
    """A video that cannot be read; loaders treat it as they do an image that cannot."""


def require_decord():
    """The module decord; ImportError names the extra that installs it."""
    try:
        import decord
    except ImportError as error:
        raise ImportError('videos need decord: pip install "s4nd[video]"') from error
    return decord


def read_frames(
    path: str | Path,
    pick: Callable[[int, float], np.ndarray],
    render: Callable[[Tensor], Tensor],
    side: int,
) -> Tensor:
    """Frames of a video, upright, each decoded once and in the order of time.

    Args:
        pick: from the number of frames and the frames per second (nan if the file does not say) to indices (n,) in any
            order, repeated or not; those beyond the ends are taken as the ends.
        render: (m, 3, H, W) uint8 -> (m, 3, h, w), called on some frames at a time.
        side: frames of more than MAX_PIXELS are decoded with this shorter side, if that makes them smaller.

    Returns:
        (n, 3, h, w), as rendered.

    Raises:
        BadVideo: not a video, damaged or truncated.
        ImportError: decord is not installed.
    """
    decord = require_decord()
    decord.logging.set_level(decord.logging.QUIET)
    with _told_of(path):
        if not Path(path).stat().st_size:
            raise ValueError("the file is empty")
        # One thread: the workers of a loader are the threads. The reader lives and dies in the worker that reads.
        reader = decord.VideoReader(str(path), num_threads=1)
        count, fps = len(reader), reader.get_avg_fps()
    indices = pick(count, fps if 0 < fps < float("inf") else float("nan")).clip(0, count - 1)
    order, back = np.unique(indices, return_inverse=True)
    with _told_of(path):
        first = reader[order[0]].asnumpy()
        height, width = first.shape[:2]
        if height * width > MAX_PIXELS and min(height, width) > side:
            factor = side / min(height, width)
            smaller = {"height": round(height * factor), "width": round(width * factor)}
            reader = decord.VideoReader(str(path), num_threads=1, **smaller)
            first = reader[order[0]].asnumpy()
    parts = [render(_pixels(first[None]))]
    for i in range(1, len(order), AT_ONCE):
        with _told_of(path):
            some = order[i : i + AT_ONCE]
            # Several in one call is faster, but refuses frames whose rows are padded.
            together = first.shape[2] == 3
            frames = reader.get_batch(some).asnumpy() if together else np.stack([reader[j].asnumpy() for j in some])
        parts.append(render(_pixels(frames)))
    frames = torch.cat(parts)
    return frames if len(order) == len(indices) and (np.diff(indices) > 0).all() else frames[torch.from_numpy(back)]


def _pixels(frames: np.ndarray) -> Tensor:
    """(m, H, W, C) from decord as (m, 3, H, W), channels last in memory.

    FFmpeg pads the rows of a narrow frame to a multiple of 64 bytes; where that happens to be a multiple of the width,
    decord counts more than 3 channels: a row is then 3 W bytes of pixels and padding.
    """
    m, H, W, C = frames.shape
    if C != 3:
        frames = frames.reshape(m, H, W * C)[:, :, : 3 * W].reshape(m, H, W, 3)
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


@contextmanager
def _told_of(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside is the video's fault: decord raises RuntimeError, AssertionError and its own error."""
    try:
        yield
    except Exception as error:
        raise BadVideo(path, _reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RuntimeError):
        return "not a video that FFmpeg can open"
    lines = str(error).splitlines() or [""]
    said = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", lines[0])  # the time and decord's own source lines
    return f"{type(error).__name__}: {said}"
