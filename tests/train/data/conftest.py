"""Small image files of every kind, good and bad, and a data set of numbered pictures."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s4nd.train.data import BadImage, ImageDataset


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Numbered(ImageDataset):
    """Item i is a random picture that depends on i alone, with label i; those in `bad` cannot be read."""

    def __init__(self, count: int, height: int = 12, width: int = 12, bad: tuple[int, ...] = (), name: str = "image"):
        self.height, self.width, self.bad, self.name = height, width, bad, name
        self.labels = np.arange(count)
        self.classes = [str(i) for i in range(count)]
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        if index in self.bad:
            raise BadImage(f"{self.name}-{index}", "damaged")
        rng = np.random.default_rng(index)
        return torch.from_numpy(rng.integers(0, 256, (3, self.height, self.width), dtype=np.uint8)), int(index)


@pytest.fixture
def numbered():
    """The class, so that a test chooses size and damage."""
    return Numbered


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def tar():
    """tar(path, {name: bytes})"""
    return write_tar


@pytest.fixture
def write_shards(tmp_path):
    """write_shards(lengths, split="train", root=tmp_path) -> root of shards with pictures of `Numbered`, and info."""
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")

    def write(lengths, split: str = "train", root: Path = tmp_path) -> Path:
        data, i, names = Numbered(sum(lengths)), 0, []
        for shard, length in enumerate(lengths):
            members = {}
            for _ in range(length):
                image = Image.fromarray(data[i][0].permute(1, 2, 0).numpy())
                members |= {f"{i:04d}.png": encoded(image), f"{i:04d}.cls": str(i).encode()}
                i += 1
            names.append(f"{split}-{shard:03d}.tar")
            write_tar(root / names[-1], members)
        path = root / "_info.json"
        info = json.loads(path.read_text()) if path.exists() else {"splits": {}, "classes": []}
        info["classes"] = [str(i) for i in range(max(sum(lengths), len(info["classes"])))]
        info["splits"][split] = {"name": split, "filenames": names, "shard_lengths": list(lengths), "num_samples": i}
        path.write_text(json.dumps(info))
        return root

    return write


@pytest.fixture
def picture():
    """picture(height, width, seed=0) -> a random PIL image."""
    return noise


@pytest.fixture
def encode():
    """encode(image, format="PNG", **options) -> bytes."""
    return encoded


@pytest.fixture
def image_tree(tmp_path) -> Path:
    """train/ and val/ with classes "cat" and "dog", two good images in each."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                noise(10, 14, i).save(tmp_path / split / name / f"{i}.png")
    return tmp_path
