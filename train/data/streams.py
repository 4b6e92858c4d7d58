"""Data sets that are read in the order in which they are stored, shard after shard, and what is trained and tested on of them.

timm's readers of streams give each worker shards of its own. So that all workers get equally far, they repeat and leave out
samples (ReaderWds also in evaluation with several processes, ReaderHfids in training), and what is in a batch depends on how
many workers there are. Here shards are no one's: every worker goes through all of them that hold something of its batches, and
keeps what belongs to these. So a stream gives the batches that any other data set gives, for any number of shards, workers and
processes: in evaluation each sample once, in training none twice, unless they are fewer than a batch. The price is that a
worker passes over what is of the others: of a local file that is a seek, from elsewhere it is read.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from copy import copy
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .dataset import ImageDataset
from .images import BadImage, decode
from .order import Order, shuffled
from .views import Rendering, Views


class Sample(NamedTuple):
    """An image file, not decoded, its class, and what to call it in errors."""

    data: bytes
    label: int
    path: str


class Truncated(BadImage):
    """Not a sample, but why a shard cannot be read further."""


class Stream(ImageDataset):
    """Images with one label each, in shards.

    `dataset[i]` is an image that a `StreamBatches` has read and holds; i is its place among all, as they are stored.

    Args:
        classes: their names.
        lengths: samples of each shard.
        window: in training so many samples are shuffled together, after the shards.

    Attributes:
        labels: (len(dataset),) of -1, as none is known before its image is read.
    """

    def __init__(self, classes: list[str], lengths: Sequence[int], window: int):
        self.classes, self.lengths, self.window = classes, list(lengths), window
        self.starts = [0, *np.cumsum(self.lengths).tolist()]
        if not self.starts[-1]:
            raise ValueError("the shards hold no sample")
        self.labels = np.broadcast_to(np.int64(-1), self.starts[-1])  # one number, whatever the length
        self.held: dict[int, Sample | BadImage] = {}

    def samples(self, shard: int, wanted: Container[int]) -> Iterator[Sample | BadImage | None]:
        """Of one shard, in order; None for those that are not wanted, and what is wrong with those that cannot be read.

        A shard of which the rest cannot be read ends with a `Truncated`.

        Args:
            wanted: places within the shard.
        """
        raise NotImplementedError

    def where(self, shard: int) -> str:
        """What to call it in errors."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.held[index]
        if isinstance(sample, BadImage):
            raise sample
        if sample.label >= len(self.classes):
            raise ValueError(f"{sample.path}: the label must be 0 to {len(self.classes) - 1}, got {sample.label}")
        return decode(sample.data, sample.path), sample.label

    def shard_order(self, seed: int | None) -> list[int]:
        """The shards as they are read; without a seed as they are stored."""
        return list(range(len(self.lengths))) if seed is None else shuffled(len(self.lengths), seed + 1).tolist()

    def shuffled(self, seed: int) -> Tensor:
        """(len(dataset),) an order for training: the shards shuffled, then each `window` of their samples.

        Of a single shard that fits into the window it is the order of a data set at random access.
        """
        read = torch.cat([torch.arange(self.starts[i], self.starts[i + 1]) for i in self.shard_order(seed)])
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in read.split(self.window)])

    def arriving(self, indices: Iterable[int], shards: Sequence[int]) -> Iterator[tuple[int, Sample | BadImage]]:
        """Those samples and their indices, shard by shard; shards that hold none of them are not opened.

        Raises:
            ValueError: a shard holds more samples than was said: some would be left out in silence.
        """
        places = defaultdict(set)
        for index in indices:
            shard = bisect_right(self.starts, index) - 1
            places[shard].add(index - self.starts[shard])
        for shard in shards:
            if shard not in places:
                continue
            found, length, reason = 0, self.lengths[shard], ""
            for place, sample in enumerate(self.samples(shard, places[shard])):
                if isinstance(sample, Truncated):
                    reason = f": {sample.reason}"
                    break
                found += 1
                if found > length:
                    raise ValueError(
                        f"{self.where(shard)} must hold {length} samples, as was said of it, and holds more"
                    )
                if sample is not None:
                    yield self.starts[shard] + place, sample
            error = BadImage(self.where(shard), f"it ends after {found} of {length} samples{reason}")
            yield from ((self.starts[shard] + place, error) for place in sorted(places[shard]) if place >= found)


class StreamBatches(IterableDataset):
    """The batches of an order, read from a stream; each worker gives every so-manieth of them, as soon as its samples are read.

    In memory are, not decoded, the samples of the worker's batches in about one window.

    Args:
        order: of this process.
        train, seed: as in `Views`.
    """

    def __init__(self, stream: Stream, order: Order, rendering: Rendering, *, train: bool, seed: int = 0):
        self.stream, self.order = copy(stream), order  # each holds samples of its own
        self.views = Views(self.stream, rendering, train=train, seed=seed)

    def __len__(self) -> int:
        return -(-len(self.order) // self.order.batch_size)

    def __iter__(self) -> Iterator[list[tuple[Tensor, int] | BadImage]]:
        """Items of `Views` (B), in a list for each batch."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batches = list(islice(_batches(self.order), first, None, step))
        shards = self.stream.shard_order(self.order.shuffle_seed())
        return self._read(batches, shards)

    def _read(self, batches: list[list[tuple[int, int, int]]], shards: Sequence[int]) -> Iterator[list]:
        held = self.stream.held = {}
        count = len(self.stream)
        uses = Counter(index % count for batch in batches for *_, index in batch)  # several with repeated augmentation
        arriving = self.stream.arriving(tuple(uses), shards)
        for batch in batches:
            indices = [index % count for *_, index in batch]
            for index in indices:
                while index not in held:
                    at, sample = next(arriving)
                    held[at] = sample
            yield [*self.views.__getitems__(batch)]
            for index in indices:
                uses[index] -= 1
                if not uses[index]:
                    del held[index]
        for _ in arriving:  # to the end of the last shard: it may hold more than was said
            pass


def _batches(order: Order) -> Iterator[list[tuple[int, int, int]]]:
    items = iter(order)
    while batch := list(islice(items, order.batch_size)):
        yield batch
