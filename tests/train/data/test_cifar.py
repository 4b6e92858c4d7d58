"""CIFAR against torchvision's loader on small archives in its format, made here: no network."""

import hashlib
import pickle

import numpy as np
import pytest

from s4nd.train.data import build_dataset
from s4nd.train.data.cifar import VERSIONS


def write(folder, filename, content):
    """A pickled batch, and its (name, MD5) as torchvision's lists have it."""
    data = pickle.dumps(content)
    (folder / filename).write_bytes(data)
    return filename, hashlib.md5(data).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def tiny(request, tmp_path, monkeypatch):
    """(name, root, pixels (2 splits, 6, 3, 32, 32)) of an archive of 6 + 6 images, with torchvision's sums set to it."""
    kind = VERSIONS[request.param]
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 3072), dtype=np.uint8)
    key, names = ("labels", "label_names") if request.param == "cifar10" else ("fine_labels", "fine_label_names")
    batches = [{"data": part, key: [0, 1, 2, 0, 1, 2]} for part in pixels]
    monkeypatch.setattr(kind, "train_list", [write(folder, "train", batches[0])])
    monkeypatch.setattr(kind, "test_list", [write(folder, "test", batches[1])])
    name, md5 = write(folder, kind.meta["filename"], {names: ["cat", "dog", "emu"]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": name, "md5": md5})
    return request.param, tmp_path, pixels.reshape(2, 6, 3, 32, 32)


def test_images_and_labels_are_torchvisions(tiny):
    name, root, pixels = tiny
    for split, expected in zip(("train", "test"), pixels, strict=True):
        data = build_dataset(name, root, split)
        assert data.classes == ["cat", "dog", "emu"] and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
        for i in range(6):
            image, label = data[i]
            assert np.array_equal(image.numpy(), expected[i]) and label == i % 3


def test_altered_archive_is_not_unpickled(tiny, monkeypatch):
    """torchvision compares the sums before it opens a file; with other bytes it would download anew."""
    name, root, _ = tiny
    (root / VERSIONS[name].base_folder / "train").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", lambda *a, **k: None)
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        build_dataset(name, root, "train")
