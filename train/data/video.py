"""Decoding of video files from outside, which are never trusted."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .film import Film, require_av
from .images import BadImage

MAX_PIXELS = 2**19  # of a frame in memory; larger ones are made smaller as they are decoded
MAX_ASPECT = 16  # of a pixel; a file may claim any
AT_ONCE = 32  # frames decoded before they are rendered: 50 MB at MAX_PIXELS


class BadVideo(BadImage):
    """A video that cannot be read; loaders treat it as they do an image that cannot."""


def read_frames(
    path: str | Path,
    pick: Callable[[np.ndarray], np.ndarray],
    render: Callable[[Tensor], Tensor],
    side: int,
) -> Tensor:
    """Frames of a video, each decoded once.

    Args:
        pick: from `Video.times` to indices (n,) in any order, repeated or not; those beyond the ends are taken as the ends.
        render: (m, 3, H, W) uint8 -> (m, 3, h, w), called on some frames at a time.
        side: see `open_video`.

    Returns:
        (n, 3, h, w), as rendered.

    Raises:
        BadVideo, ImportError: as `open_video`.
    """
    with open_video(path, side) as video:
        indices = pick(video.times).clip(0, len(video.times) - 2)
        order, back = np.unique(indices, return_inverse=True)
        decoded = video.frames(order)
        rendered: list[Tensor] = []
        while some := list(islice(decoded, AT_ONCE)):
            rendered.append(render(as_images(some)))
    frames = torch.cat(rendered)
    return frames if len(order) == len(indices) and (np.diff(indices) > 0).all() else frames[torch.from_numpy(back)]


@contextmanager
def open_video(path: str | Path, side: int) -> Iterator["Video"]:
    """A video file, open as long as this lasts.

    Args:
        side: frames of more than MAX_PIXELS get this shorter side, if that makes them smaller.

    Raises:
        BadVideo: not a video, damaged or truncated; also while frames are read.
        ImportError: PyAV is not installed.
    """
    av = require_av()
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said by the error
    with _told_of(path):
        if not Path(path).stat().st_size:
            raise ValueError("the file is empty")
        film = Film(path)
    with film:
        with _told_of(path):
            picture = _Picture(film.pixel_aspect, side)
        yield Video(path, film, picture)


class Video:
    """The frames of a file as a player shows them, upright and of square pixels, in the order of time.

    Attributes:
        times: (count + 1,) seconds, frame i being shown from times[i] to times[i + 1] and times[0] = 0.
    """

    def __init__(self, path: str | Path, film: Film, picture: "_Picture"):
        self.path, self.film, self.picture = path, film, picture
        self.times = film.times

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 of each of the indices (m,), which increase; decoded as they are asked for."""
        decoded = self.film.frames(indices)
        for _ in indices:
            with _told_of(self.path):
                frame = self.picture(next(decoded))
            yield frame


def as_images(frames: Sequence[np.ndarray]) -> Tensor:
    """Frames (H, W, 3) as (m, 3, H, W)."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


class _Picture:
    """Frames as arrays (H, W, 3) uint8 of square pixels, turned upright, all of the size of the first one.

    Args:
        pixel_aspect: width of a pixel in units of its height.
        side: see `open_video`.
    """

    def __init__(self, pixel_aspect: float, side: int):
        if not 1 / MAX_ASPECT <= pixel_aspect <= MAX_ASPECT:
            raise ValueError(f"its pixels are {pixel_aspect:g} times as wide as high")
        self.pixel_aspect, self.side = pixel_aspect, side
        self.size: tuple[int, int] | None = None
        self.reformatter = require_av().video.reformatter.VideoReformatter()  # one for all: it keeps its tables

    def __call__(self, frame: Any) -> np.ndarray:
        width, height = self.size = self.size or self._size(frame.width, frame.height)
        options = {"format": "rgb24", "interpolation": "AREA" if width * height < frame.width * frame.height else None}
        rgb = self.reformatter.reformat(frame, width, height, threads=1, **options).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return rgb if matrix is None else turned(rgb, np.frombuffer(bytes(matrix), dtype=np.int32))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to show; pixels are stretched along their shorter side, so that none is lost."""
        wide, high = width * max(1, self.pixel_aspect), height / min(1, self.pixel_aspect)
        factor = min(1, self.side / min(wide, high)) if wide * high > MAX_PIXELS else 1
        return max(1, round(wide * factor)), max(1, round(high * factor))


def turned(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) as its display matrix (9,) wants it: by quarter turns and mirrored, the nearest there is.

    A pixel at (x, y) is shown at (x a + y c, x b + y d), with a, b, c, d = matrix[[0, 1, 3, 4]] (ISO/IEC 14496-12, 6.2.2).
    """
    a, b, c, d = matrix[[0, 1, 3, 4]].tolist()
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


@contextmanager
def _told_of(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside is the video's fault: FFmpeg's errors are of many types."""
    try:
        yield
    except Exception as error:
        raise BadVideo(path, _reason(error)) from None


def _reason(error: Exception) -> str:
    if type(error) is ValueError:  # from here
        return str(error)
    if isinstance(error, require_av().error.InvalidDataError):
        return "not a video that FFmpeg can open, or damaged"
    said = re.sub(r"\[Errno \d+\] ", "", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {said}"
