"""Batches of images or clips of one size: shuffled or not, over processes and workers, damaged ones left out or raised."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader

from .at_sizes import AtSizes, drawn_sizes
from .augmented import Augmented
from .clips import Clips, ClipSampling
from .dataset import ImageDataset
from .image_transforms import ImageTransforms
from .images import BadImage
from .resized import Resized, mix
from .video import BadVideo
from .video_sets import VideoDataset

logger = logging.getLogger("s4nd")
_reported: set[str] = set()  # a damaged image turns up in every epoch, each of which has a loader of its own


class ImageLoader(DataLoader):
    """Batches (images (B, 3, size, size) uint8, labels (B,) or, of attributes, (B, K) int64), without those images that cannot
    be read.

    Of videos: clips (B, 3, T, size, size) for training; for testing all clips (K, 3, T, size, size) of a video, label (1,).
    They are reported by the process that iterates, not by its workers: once, as a warning of the logger "s4nd"; with
    `skip_bad=False` the first one is raised. A batch is smaller by them, and is left out if nothing remains, so that a
    batch is never empty but there may be fewer than `len(loader)`.

    Attributes:
        consumed: batches of the present iteration that were asked for, those left out among them.
        unreadable: images of the present iteration that were left out.
    """

    consumed = unreadable = 0

    def __init__(self, dataset: Resized | Clips, *, skip_bad: bool, **options):
        super().__init__(dataset, **options)
        self.skip_bad = skip_bad

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.consumed = self.unreadable = 0
        for images, labels, bad in super().__iter__():
            self.consumed, self.unreadable = self.consumed + 1, self.unreadable + len(bad)
            for error in bad:
                if not self.skip_bad:
                    raise error
                report(error)
            if len(labels):
                yield images, labels


def report(error: BadImage) -> None:
    """Warn of a damaged image, the first time."""
    if error.path not in _reported:
        _reported.add(error.path)
        kind = "a video" if isinstance(error, BadVideo) else "an image"
        logger.warning("skipped %s that cannot be read: %s", kind, error)


def collate(items: Sequence[tuple[Tensor, int] | BadImage]) -> tuple[Tensor, Tensor, list[BadImage]]:
    """The images (B, 3, size, size) and labels (B,) or (B, K) of those items that were read, and the errors of the others."""
    bad = [item for item in items if isinstance(item, BadImage)]
    good = [item for item in items if not isinstance(item, BadImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, dtype=torch.uint8)
    return images, torch.from_numpy(np.array([label for _, label in good], dtype=np.int64)), bad


def collate_clips(items: Sequence[tuple[Tensor, int] | BadVideo]) -> tuple[Tensor, Tensor, list[BadVideo]]:
    """As `collate` for one video at test time: its clips are the batch."""
    clips, labels, bad = collate(items)
    return clips[0] if len(clips) else clips, labels, bad


def share(
    count: int, batch_size: int, rank: int, world_size: int, seed: int, parts: int = 1, repeats: int = 1
) -> list[int]:
    """The images, of `count`, that a process trains on in an epoch, in their order: its part of every batch of all processes.

    Where a batch divides evenly into pairs of its i-th image from the start and from the end, which is how mixup pairs them,
    both are in one process, in an order in which they are paired again. So several processes mix what a single one mixes.

    Args:
        batch_size: of all processes; images at the end that do not fill one are left out, unless they are the only ones.
        parts: of each process's batch, one after the other, which mix as if they were of processes of their own.
        repeats: of each image, one after the other, `i + r * count` for the r-th of image i: mostly in one batch, and in
            different processes. The epoch is no longer for it: fewer images are in it, as with timm's RepeatAugSampler.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = (order[:, None] + count * torch.arange(repeats)).flatten()[:count]
    batch_size = min(batch_size, -(-count // world_size) * world_size)
    order = (
        order[: count // batch_size * batch_size] if count >= batch_size else order[torch.arange(batch_size) % count]
    )
    place = torch.arange(batch_size)
    parts = parts if batch_size % (world_size * parts) == 0 else 1
    sharers = world_size * parts
    owner = torch.minimum(place, batch_size - 1 - place) if batch_size % (2 * sharers) == 0 else place
    mine = [place[owner % sharers == rank * parts + part] for part in range(parts)]
    return order.view(-1, batch_size)[:, torch.cat(mine)].flatten().tolist()


def make_loader(
    dataset: ImageDataset | VideoDataset,
    size: int,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    hflip: bool = False,
    pad: float = 0.0,
    transforms: ImageTransforms | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    sampling: ClipSampling | None = None,
    sizes: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    parts: int = 1,
    begin: int = 0,
    skip_bad: bool | None = None,
) -> ImageLoader:
    """The batches of one epoch in one process.

    Training: in the order of (seed, epoch), augmented (see `Resized` and `Augmented`), without a last batch that is not full
    unless it is the only one. Step k of all processes together sees the images of step k of a single process with batches
    of `world_size * batch_size`; only a single batch that cannot be shared evenly repeats some images.
    Evaluation: in order, in the middle; each image in one process, once.

    Args:
        size: side of the images, in pixels.
        batch_size: images of a batch, in this process.
        hflip, pad: used in training only; pad not for videos.
        transforms: of images; None: `ImageTransforms()`.
        normalisation: mean and std of the model's input, (C,) each, which random erasing and policies fill with.
        sampling: of the clips, for a data set of videos; None for images.
        sizes: sides of the training images, one of which is drawn for each step; None: `size`. Not for videos.
        rank, world_size: this process and the number of them.
        parts: in which a training batch is to be run, see `share`.
        begin: batches of the epoch to leave out at its beginning: those before an interruption.
        skip_bad: leave out images that cannot be read, and report them; otherwise they raise BadImage. Default: `train`.
    """
    transforms, augmentation = transforms or ImageTransforms(), dict(hflip=hflip, pad=pad, seed=seed, epoch=epoch)

    def augmented(size: int) -> Resized:
        if transforms.changes_images:
            mean, std = normalisation
            return Augmented(dataset, size, transforms, mean=mean, std=std, **augmentation)
        interpolation, repeats = transforms.in_training, transforms.aug_repeats
        return Resized(dataset, size, interpolation=interpolation, repeats=repeats, **augmentation)

    if sampling is not None:
        if transforms != ImageTransforms() or sizes:
            raise ValueError(f"transforms and sizes are of images; clips are sampled, got {transforms} and {sizes=}")
        view = Clips(dataset, size, sampling, train=train, hflip=hflip, seed=seed, epoch=epoch)
    elif train:
        view = AtSizes({each: augmented(each) for each in sizes}) if sizes else augmented(size)
    else:
        view = Resized(dataset, size, interpolation=transforms.interpolation, crop_pct=transforms.crop_pct)
    if train:
        seed_of_order, repeats = mix(seed, epoch, "order"), transforms.aug_repeats
        order = share(len(dataset), batch_size * world_size, rank, world_size, seed_of_order, parts, repeats)
        if sizes:
            of_step = drawn_sizes(sizes, -(-len(order) // batch_size), seed, epoch)
            order = [(of_step[i // batch_size], index) for i, index in enumerate(order)]
        sampler = order[begin * batch_size :]
    else:
        sampler = range(rank, len(dataset), world_size)
    return ImageLoader(
        view,
        skip_bad=train if skip_bad is None else skip_bad,
        collate_fn=collate if train or sampling is None else collate_clips,
        batch_size=batch_size if train or sampling is None else 1,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # seeds the workers, which draw nothing; the global generator stays as it is
    )
