"""A small data set of generated images in folders, the config that trains on it in seconds, and small videos."""

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: what is compared bit for bit must not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """train/ and test/ with two classes, stripes along either axis, of 12 x 12 pixels and random phase."""
    root = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        for axis, name in enumerate(("rows", "columns")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                wave = np.sin(np.arange(12) * 2 * np.pi / 6 + rng.uniform(0, 2 * np.pi))
                stripes = np.broadcast_to(wave[:, None] if axis == 0 else wave, (12, 12))
                noisy = 128 + 60 * stripes[..., None] + rng.normal(0, 20, (12, 12, 3))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def stripes_in_shards(tmp_path_factory, folder) -> Path:
    """The images of `folder` in WebDataset shards, in its order: train and test in one shard, "shards" is train in five."""
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")
    root = tmp_path_factory.mktemp("shards")
    splits = {}
    for name, split, count in (("train", "train", 1), ("test", "test", 1), ("shards", "train", 5)):
        samples = [
            (label, path)
            for label, part in enumerate(("columns", "rows"))
            for path in sorted_files(folder / split / part)
        ]
        names = [f"{name}-{shard}.tar" for shard in range(count)]
        parts = np.array_split(np.arange(len(samples)), count)
        for file, places in zip(names, parts, strict=True):
            with tarfile.open(root / file, "w") as tar:
                for i in places:
                    label, path = samples[i]
                    for key, data in (("png", path.read_bytes()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{i:04d}.{key}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        lengths = [len(places) for places in parts]
        splits[name] = {"name": name, "filenames": names, "shard_lengths": lengths, "num_samples": len(samples)}
    (root / "_info.json").write_text(json.dumps({"classes": ["columns", "rows"], "splits": splits}))
    return root


def sorted_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: path.name)


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """train.csv and test.csv of 12 x 12 images with the attributes red, green and blue, each seen in its channel.

    In training 18, 12 and 3 of 24 have them; in testing image i of 8 has those that the bits of i say.
    """
    root = tmp_path_factory.mktemp("coloured")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    trained = np.stack([rng.permutation(24) < count for count in (18, 12, 3)], axis=1)
    tested = np.array([[i >> bit & 1 for bit in range(3)] for i in range(8)])
    for split, labels in (("train", trained), ("test", tested)):
        lines = ["file,red,green,blue"]
        for i, row in enumerate(labels.astype(int)):
            noisy = 60 + 120 * row + rng.normal(0, 20, (12, 12, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{split}-{i}.png")
            lines.append(f"images/{split}-{i}.png," + ",".join(map(str, row)))
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


CONFIG = """
data: {{name: folder, root: {root}}}
model: {{name: {model}, args: {{embed_dim: 8, depth: 2{args}}}}}
stages: [{{size: 8, epochs: 2}}]
optim: {{lr: 0.01}}
batch_size: 16
device: cpu
out: {out}
"""


@pytest.fixture
def write_config(tmp_path, folder):
    """write_config(model="conv_iso_tiny", **args of the model) -> path of a YAML; runs go below tmp_path."""

    def write(model: str = "conv_iso_tiny", **args) -> Path:
        more = "".join(f", {key}: {value}" for key, value in args.items())
        path = tmp_path / f"{model}.yaml"
        path.write_text(CONFIG.format(root=folder, model=model, args=more, out=tmp_path / "run" / model))
        return path

    return write


CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}


@pytest.fixture
def write_video(tmp_path):
    """write_video(name, count, fps=30, height=64, width=80, noise=True, grey=...) -> path below tmp_path.

    Frame i is of grey `grey(i)`, by default 8 i; its left half is noise, so that a file is large enough to be damaged.
    """
    av = pytest.importorskip("av", reason="needs PyAV to write videos")

    def write(name, count, fps=30, height=64, width=80, noise=True, grey=lambda i: 8 * i) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream(CODECS[path.suffix], rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.bit_rate = 4_000_000
            for i in range(count):
                frame = np.full((height, width, 3), min(grey(i), 255), dtype=np.uint8)
                if noise:
                    frame[:, : width // 2] = np.random.default_rng(i).integers(0, 256, (height, width // 2, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write
