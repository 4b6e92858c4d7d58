"""A data set of videos seen as clips: a random one of each for training, as many as cover it for testing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from .motion import MOTION
from .resized import mix
from .video import BadVideo, read_frames
from .video_sets import VideoDataset

MAX_CLIPS = 32  # that cover a video at test time; they are in memory together
UNCOVERED = 0.01  # of a clip that a video may be longer than its clips: times are rounded
ROUNDING = 1e-3  # seconds; Matroska's times are whole milliseconds


@dataclass(frozen=True)
class ClipSampling:
    """What becomes of a video.

    Attributes:
        frames: of a clip, each at the middle of its share of the time.
        seconds: duration of a clip; a shorter video is one clip as a whole.
        clips: at test time, evenly spaced; None: as many as cover the video, at most MAX_CLIPS.
        scale: in training the shorter side is resized to between 1 and this many times the crop.
        randaugment: magnitude of torchvision's RandAugment, 0 to 30, two operations, the same for all frames; None is off.
        gamma: pixels (0 to 1) to this power, always; below 1 brightens.
        motion: a key of MOTION: what to show in place of frames, so that neither scene, light nor contrast tells clips apart;
            None shows the frames.
    """

    frames: int = 30
    seconds: float = 2.0
    clips: int | None = None
    scale: float = 1.25
    randaugment: int | None = None
    gamma: float = 1.0
    motion: str | None = None

    def protocol(self) -> str:
        """How the accuracy of a video comes about, in words."""
        number = f"{self.clips} evenly spaced clips" if self.clips else f"clips that cover it, at most {MAX_CLIPS}"
        clip = f"{self.frames} frames over {self.seconds:g} s"
        return f"accuracy per video: mean probability of {number}, of {clip} each, central crop"


class Clips(Dataset):
    """A clip (3, frames, size, size) uint8 of each video for training; for testing all of its clips, (K, 3, frames, ...).

    In training the start, scale, place and mirroring of the clip, and its RandAugment, are random, and what happens to video
    `i` follows from (seed, epoch, i) alone, not from workers, batches or what was read before. In testing every frame is
    rendered as images are: its central square, resized (bilinear with antialiasing).

    Args:
        dataset: videos by path.
        size: side of the clips, in pixels.
        hflip: mirror every other clip, at random; training only.
        seed, epoch: of the random numbers.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        size: int,
        sampling: ClipSampling,
        *,
        train: bool,
        hflip: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ):
        if size < 1 or sampling.frames < 1:
            raise ValueError(f"need size >= 1 and frames >= 1, got size={size}, frames={sampling.frames}")
        self.dataset, self.size, self.sampling, self.train = dataset, size, sampling, train
        self.classes, self.labels = dataset.classes, dataset.labels
        self.seed, self.epoch = seed, epoch
        if train:
            generator = torch.Generator().manual_seed(mix(seed, epoch, "augmentation"))
            self.numbers = torch.rand(len(dataset), 5, generator=generator)  # start, scale, top, left, flip
            self.flip = (self.numbers[:, 4] < 0.5) & hflip  # (len,)
        brightened = 255 * (np.arange(256) / 255) ** sampling.gamma  # of each grey value
        self.brightened = brightened.astype(np.float32) if sampling.motion else brightened.round().astype(np.uint8)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The clip or clips of a video, and its label.

        Raises:
            BadVideo: it cannot be read.
        """
        path, label = self.dataset[index]
        return (self.training_clip(path, index) if self.train else self.testing_clips(path)), label

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int] | BadVideo]:
        """Several at once, which is what a loader asks for; one that cannot be read is represented by its error."""
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> tuple[Tensor, int] | BadVideo:
        try:
            return self[index]
        except BadVideo as error:
            return error

    def training_clip(self, path: str, index: int) -> Tensor:
        """(3, frames, size, size) uint8."""
        start, scale, *place, _ = self.numbers[index].tolist()
        scale = 1 + scale * (self.sampling.scale - 1)
        frames = read_frames(
            path,
            lambda times: self.frame_indices(times, np.array([start])),
            partial(self.render, scale=scale, place=place),
            side=math.ceil(self.size * self.sampling.scale),
        )
        if self.flip[index]:
            frames = frames.flip(-1)
        if self.sampling.motion:
            frames = MOTION[self.sampling.motion](frames)
        if self.sampling.randaugment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix(self.seed, self.epoch, f"randaugment {index}"))
                frames = v2.RandAugment(magnitude=self.sampling.randaugment)(frames)
        return frames.transpose(0, 1).contiguous()

    def testing_clips(self, path: str) -> Tensor:
        """(K, 3, frames, size, size) uint8."""
        frames = read_frames(path, self._cover, self.render, side=self.size)
        clips = frames.unflatten(0, (-1, self.sampling.frames))
        if self.sampling.motion:
            clips = MOTION[self.sampling.motion](clips)
        return clips.transpose(1, 2).contiguous()

    def render(self, frames: Tensor, scale: float = 1.0, place: Sequence[float] | None = None) -> Tensor:
        """(m, 3, H, W) uint8, brightened, to (m, 3, size, size); with `motion` float32: changes of dark frames are below 1."""
        if self.sampling.gamma != 1 or self.sampling.motion:
            frames = torch.from_numpy(self.brightened[frames.numpy()])
        return crop(frames, self.size, scale, place)

    def _cover(self, times: np.ndarray) -> np.ndarray:
        most = math.ceil(times[-1] / self._span(times) - UNCOVERED)
        K = self.sampling.clips or min(max(most, 1), MAX_CLIPS)
        return self.frame_indices(times, np.linspace(0, 1, K) if K > 1 else np.array([0.5]))

    def _span(self, times: np.ndarray) -> float:
        """Duration of a clip in seconds."""
        return min(self.sampling.seconds, times[-1])

    def frame_indices(self, times: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Frames (K * frames,) of clips of a video.

        Args:
            times: (count + 1,) seconds, frame i being shown from times[i] to times[i + 1].
            starts: (K,) of the clips, from 0, the earliest possible, to 1, the latest.
        """
        span, T = self._span(times), self.sampling.frames
        instants = starts[:, None] * (times[-1] - span) + (np.arange(T) + 0.5) * span / T
        return frames_at(times, instants).reshape(-1)


def frames_at(times: np.ndarray, instants: np.ndarray) -> np.ndarray:
    """The frames that are shown at some instants, in seconds; times as in `frame_indices`.

    An instant that falls on the beginning of a frame means that frame, however the container has rounded its time.
    """
    rounding = min(ROUNDING, np.diff(times).min() / 4)
    return np.searchsorted(times[:-1], instants + rounding, side="right") - 1


def crop(frames: Tensor, size: int, scale: float = 1.0, place: Sequence[float] | None = None) -> Tensor:
    """(m, 3, H, W) to (m, 3, size, size) as if the shorter side were resized to scale * size first, then cropped.

    Args:
        place: of the crop, 0 (inclusive) to 1 (exclusive) from the top and from the left; None: in the middle.
    """
    extent = frames.shape[2:]
    side = max(1, round(min(extent) / scale))
    free = [n - side for n in extent]
    top, left = (
        [n // 2 for n in free] if place is None else [int(u * (n + 1)) for u, n in zip(place, free, strict=True)]
    )
    square = frames[:, :, top : top + side, left : left + side]
    return TF.resize(square, [size, size], TF.InterpolationMode.BILINEAR, antialias=True)
