"""Batches of images or clips of one size: shuffled or not, over processes and workers, damaged ones left out or raised."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .dataset import ImageDataset
from .images import BadImage
from .order import InOrder, Order, Shuffled, shuffled
from .streams import Stream, StreamBatches
from .video import BadVideo
from .video_sets import VideoDataset
from .views import Rendering, Views

logger = logging.getLogger("s4nd")
_reported: set[str] = set()  # a damaged image turns up in every epoch


class ImageLoader(DataLoader):
    """Batches (images (B, 3, size, size) uint8, labels (B,) or, of attributes, (B, K) int64), without those images that cannot
    be read. With noise the targets are the residuals (B, 3, size, size) int16 of `Noisy`.

    Of videos: clips (B, 3, T, size, size) for training; for testing all clips (K, 3, T, size, size) of a video, label (1,).
    They are reported by the process that iterates, not by its workers: once, as a warning of the logger "s4nd"; with
    `skip_bad=False` the first one is raised. A batch is smaller by them, and is left out if nothing remains, so that a
    batch is never empty but there may be fewer than `len(loader)`.

    Each iteration is the epoch that `set_epoch` said last; workers live as long as the loader.

    Args:
        order: of this process.
        train, seed: as in `Views`.
        workers, prefetch, skip_bad: as in `make_loader`.

    Attributes:
        consumed: batches of the present iteration that were asked for, those left out among them.
        unreadable: images of the present iteration that were left out.
    """

    consumed = unreadable = 0

    def __init__(
        self,
        dataset: ImageDataset | VideoDataset,
        rendering: Rendering,
        order: Order,
        *,
        train: bool,
        seed: int,
        workers: int,
        prefetch: int,
        skip_bad: bool,
    ):
        shown: dict[str, Any] = {"rendering": rendering, "train": train, "seed": seed}
        items: dict[str, Any]
        if isinstance(dataset, Stream):
            items = {"dataset": StreamBatches(dataset, order, **shown), "batch_size": None}  # its items are batches
        else:
            items = {"dataset": Views(dataset, **shown), "batch_size": order.batch_size, "sampler": order}
        super().__init__(
            **items,
            collate_fn=_collate if train or rendering.sampling is None else _collate_clips,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # seeds the workers, which draw nothing; the global generator stays as it is
        )
        self.order, self.skip_bad = order, skip_bad

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """The epoch of the next iteration, and how many batches at its beginning to leave out: those before an interruption."""
        self.order.set_epoch(epoch, begin)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # no more of torch's own than its batches
        self.consumed = self.unreadable = 0
        for images, labels, bad in super().__iter__():
            self.consumed, self.unreadable = self.consumed + 1, self.unreadable + len(bad)
            for error in bad:
                if not self.skip_bad:
                    raise error
                _report(error)
            if len(labels):
                yield images, labels


def _report(error: BadImage) -> None:
    """Warn of a damaged image, the first time."""
    if error.path not in _reported:
        _reported.add(error.path)
        kind = "a video" if isinstance(error, BadVideo) else "an image"
        logger.warning("skipped %s that cannot be read: %s", kind, error)


def _collate(items: Sequence[tuple[Tensor, int | Tensor] | BadImage]) -> tuple[Tensor, Tensor, list[BadImage]]:
    """The images (B, 3, size, size) of those items that were read, their labels (B,) or (B, K), or their residuals, and the
    errors of the others."""
    bad = [item for item in items if isinstance(item, BadImage)]
    good = [item for item in items if not isinstance(item, BadImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, dtype=torch.uint8)
    labels: list[Any] = [label for _, label in good]
    if labels and isinstance(labels[0], Tensor):
        return images, torch.stack(labels), bad
    return images, torch.from_numpy(np.array(labels, dtype=np.int64)), bad


def _collate_clips(items: Sequence[tuple[Tensor, int] | BadVideo]) -> tuple[Tensor, Tensor, list[BadImage]]:
    """As `_collate` for one video at test time: its clips are the batch."""
    clips, labels, bad = _collate(items)
    return clips[0] if len(clips) else clips, labels, bad


def make_loader(
    dataset: ImageDataset | VideoDataset,
    size: int,
    batch_size: int,
    *,
    train: bool,
    rendering: Rendering | None = None,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    skip_bad: bool | None = None,
) -> ImageLoader:
    """The batches of one process, in one epoch after the other: see `ImageLoader.set_epoch`.

    Training: in the order of (seed, epoch), augmented (see `Resized` and `Augmented`), without a last batch that is not full
    unless it is the only one. Step k of all processes together sees the images of step k of a single process with batches
    of `world_size * batch_size`; only a single batch that cannot be shared evenly repeats some images.
    Evaluation: in order, in the middle; each image in one process, once.

    Args:
        size: side of the images, in pixels.
        batch_size: images of a batch, in this process.
        rendering: what becomes of the images; None: `Rendering()`.
        sizes: sides of the training images, one of which is drawn for each step; None: `size`. Not for videos.
        epoch: the first one.
        workers: processes that read and render, from the first iteration on as long as the loader is there.
        prefetch: batches that each of them has ready.
        rank, world_size: this process and the number of them.
        micro_batches: in which a training batch is to be run, see `share`.
        skip_bad: leave out images that cannot be read, and report them; otherwise they raise BadImage. Default: `train`.
    """
    rendering = rendering or Rendering()
    if rendering.sampling is not None and sizes:
        raise ValueError(f"sizes are of images; clips are all of one, got {sizes}")
    skip_bad = train if skip_bad is None else skip_bad
    place = {"rank": rank, "world_size": world_size}
    order: Order
    if train:
        sharing = {"micro_batches": micro_batches, "repeats": rendering.transforms.aug_repeats} | place
        shuffle = dataset.shuffled if isinstance(dataset, Stream) else partial(shuffled, len(dataset))
        order = Shuffled(shuffle, sizes or [size], batch_size, seed, **sharing)
    else:
        order = InOrder(len(dataset), size, batch_size if rendering.sampling is None else 1, **place)
    order.set_epoch(epoch)
    working: dict[str, Any] = {"workers": workers, "prefetch": prefetch, "skip_bad": skip_bad}
    return ImageLoader(dataset, rendering, order, train=train, seed=seed, **working)
