"""A data set seen at several sizes, one for each batch: training on many resolutions at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .images import BadImage
from .resized import Resized, mix


class AtSizes(Dataset):
    """Views of one data set by their size. Its items are asked for as (size, index), those of a batch all of one size.

    Args:
        views: {size: view}.
    """

    def __init__(self, views: Mapping[int, Resized]):
        self.views = dict(views)
        view = next(iter(self.views.values()))
        self.classes, self.labels = view.classes, view.labels

    def __getitems__(self, items: list[tuple[int, int]]) -> list[tuple[Tensor, int] | BadImage]:
        """Images (3, size, size) uint8 and labels, or the errors of those that cannot be read."""
        return self.views[items[0][0]].__getitems__([index for _, index in items])


def drawn_sizes(sizes: Sequence[int], steps: int, seed: int, epoch: int) -> list[int]:
    """The size of each step of an epoch, the same in all processes: each with the same probability."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, "sizes"))
    return [sizes[i] for i in torch.randint(len(sizes), (steps,), generator=generator).tolist()]
