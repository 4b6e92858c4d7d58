"""CIFAR-10 and CIFAR-100 as torchvision has them, downloaded on first use."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from .dataset import ImageDataset

VERSIONS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class Cifar(ImageDataset):
    """32 x 32 RGB images, all of them in memory (150 MB for training).

    Args:
        name: "cifar10" or "cifar100".
        root: where the files are, or are downloaded to.
        split: "train" (50,000 images) or "test" (10,000).
    """

    def __init__(self, name: str, root: str | Path, split: str):
        # The files are pickles, and unpickling can run code; torchvision compares each with its known MD5 sum first.
        data = VERSIONS[name](str(root), train=split == "train", download=True)
        self.classes = list(data.classes)
        self.labels = np.asarray(data.targets, dtype=np.int64)
        self.images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (len, 3, 32, 32) uint8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])
