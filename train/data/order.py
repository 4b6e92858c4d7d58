"""In which order a process sees the images of an epoch, and at which sizes: from the seed and the epoch alone."""

from collections.abc import Callable, Iterator, Sequence

import torch
from timm.data.readers.shared_count import SharedCount
from torch import Tensor
from torch.utils.data import Sampler

from .resized import mix


class Order(Sampler[tuple[int, int, int]]):
    """The items (epoch, size, index) of a process in an epoch: what is to be shown, at how many pixels per side.

    An item says its epoch, so that workers live on from one epoch to the next; workers that read a stream look here for it.

    Args:
        batch_size: items of a batch, which stand one after the other.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.epoch, self.begin = SharedCount(), SharedCount()
        self.drawn: tuple[int, Sequence[int]] | None = None

    def indices(self, epoch: int) -> Sequence[int]:
        """Of the whole epoch."""
        raise NotImplementedError

    def sizes(self, epoch: int, batches: int) -> Sequence[int]:
        """(batches,) of the whole epoch."""
        raise NotImplementedError

    def shuffle_seed(self) -> int | None:
        """Of what is shuffled in the present epoch; None: nothing is."""
        return None

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Which epoch is the next one, and how many batches at its beginning to leave out: those before an interruption."""
        self.epoch.value, self.begin.value = epoch, begin

    def whole(self) -> Sequence[int]:
        """The indices of the present epoch; drawn once."""
        epoch = self.epoch.value
        if self.drawn is None or self.drawn[0] != epoch:
            self.drawn = epoch, self.indices(epoch)
        return self.drawn[1]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        indices, epoch = self.whole(), self.epoch.value
        sizes = self.sizes(epoch, -(-len(indices) // self.batch_size))
        for i in range(self.begin.value * self.batch_size, len(indices)):
            yield epoch, sizes[i // self.batch_size], indices[i]

    def __len__(self) -> int:
        return max(0, len(self.whole()) - self.begin.value * self.batch_size)


class InOrder(Order):
    """Every item once, in one of the processes, at one size, in every epoch alike."""

    def __init__(self, count: int, size: int, batch_size: int, rank: int, world_size: int):
        super().__init__(batch_size)
        self.size, self.mine = size, range(rank, count, world_size)

    def indices(self, epoch: int) -> Sequence[int]:
        return self.mine

    def sizes(self, epoch: int, batches: int) -> Sequence[int]:
        return [self.size] * batches


class Shuffled(Order):
    """Of training: the share of a process in what is shuffled in each epoch.

    Args:
        shuffle: an order (count,) of all items, from a seed.
        sizes: one of which is drawn for each batch.
        batch_size: of this process.
        sharing: rank, world_size, micro_batches and repeats of `share`.
    """

    def __init__(
        self, shuffle: Callable[[int], Tensor], sizes: Sequence[int], batch_size: int, seed: int, **sharing: int
    ):
        super().__init__(batch_size)
        self.shuffle, self.choices, self.seed, self.sharing = shuffle, sizes, seed, sharing

    def shuffle_seed(self) -> int | None:
        return mix(self.seed, self.epoch.value, "order")

    def indices(self, epoch: int) -> Sequence[int]:
        order = self.shuffle(mix(self.seed, epoch, "order"))
        return share(order, self.batch_size * self.sharing["world_size"], **self.sharing)

    def sizes(self, epoch: int, batches: int) -> Sequence[int]:
        return _drawn_sizes(self.choices, batches, self.seed, epoch)


def shuffled(count: int, seed: int) -> Tensor:
    """(count,) indices in an order that follows from the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def share(
    order: Tensor, batch_size: int, rank: int, world_size: int, micro_batches: int = 1, repeats: int = 1
) -> list[int]:
    """The images that a process trains on in an epoch, in their order: its share of every batch of all processes.

    Where a batch divides evenly into pairs of its i-th image from the start and from the end, which is how mixup pairs them,
    both are in one process, in an order in which they are paired again. So several processes mix what a single one mixes.

    Args:
        order: (count,) all images.
        batch_size: of all processes; images at the end that do not fill one are left out, unless they are the only ones.
        micro_batches: of each process's batch, one after the other, which mix as if they were of processes of their own.
        repeats: of each image, one after the other, `i + r * count` for the r-th of image i: mostly in one batch, and in
            different processes. The epoch is no longer for it: fewer images are in it, as with timm's RepeatAugSampler.
    """
    count = len(order)
    order = (order[:, None] + count * torch.arange(repeats)).flatten()[:count]
    batch_size = min(batch_size, -(-count // world_size) * world_size)
    order = (
        order[: count // batch_size * batch_size] if count >= batch_size else order[torch.arange(batch_size) % count]
    )
    place = torch.arange(batch_size)
    if batch_size % (world_size * micro_batches):
        micro_batches = 1
    sharers = world_size * micro_batches
    owner = torch.minimum(place, batch_size - 1 - place) if batch_size % (2 * sharers) == 0 else place
    mine = [place[owner % sharers == rank * micro_batches + i] for i in range(micro_batches)]
    return order.view(-1, batch_size)[:, torch.cat(mine)].flatten().tolist()


def _drawn_sizes(sizes: Sequence[int], steps: int, seed: int, epoch: int) -> list[int]:
    """The size of each step of an epoch, the same in all processes: each with the same probability."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, "sizes"))
    return [sizes[i] for i in torch.randint(len(sizes), (steps,), generator=generator).tolist()]
