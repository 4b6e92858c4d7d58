"""Hugging Face data sets in local folders against the pictures that were written into them: at once and as streams."""

import logging
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from s4nd.train.data import BadImage, Reading, build_dataset, make_loader
from s4nd.train.data.dataset import Cached
from s4nd.train.data.streams import Stream


def labels_of(loader):
    return [label for _, labels in loader for label in labels.tolist()]


def same(one, other):
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x, y) for pair in zip(one, other, strict=True) for x, y in zip(*pair, strict=True)
    )


@pytest.fixture
def write(tmp_path, numbered, encode, monkeypatch):
    """write(lengths, split="train", image="image", label="label", rows={i: row}) -> folder of parquet files of `Numbered`."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 's4nd[hf]'")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)

    def save(lengths, split="train", image="image", label="label", names=True, rows=None):
        count = sum(lengths)
        data = numbered(count)
        kind = datasets.ClassLabel(names=data.classes) if names else datasets.Value("int64")
        features = datasets.Features({image: datasets.Image(), label: kind})
        pictures = [Image.fromarray(data[i][0].permute(1, 2, 0).numpy()) for i in range(count)]
        made = [{image: {"bytes": encode(picture), "path": None}, label: i} for i, picture in enumerate(pictures)]
        for i, row in (rows or {}).items():
            made[i] |= row
        start = 0
        (tmp_path / "set").mkdir(exist_ok=True)
        for shard, length in enumerate(lengths):
            part = datasets.Dataset.from_list(made[start : start + length], features=features)
            part.to_parquet(str(tmp_path / "set" / f"{split}-{shard:05d}-of-{len(lengths):05d}.parquet"), batch_size=3)
            start += length
        return tmp_path / "set"

    return save


@pytest.fixture
def build(tmp_path):
    """build(reader, folder, split="test", **reading)"""

    def read(reader, folder, split="test", **reading):
        return build_dataset(f"{reader}/{folder}", tmp_path / "kept", split, reading=Reading(**reading))

    return read


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_is_what_was_written(write, build, numbered, reader, split):
    data = build(reader, write((5, 1, 7), split))
    assert data.classes == [str(i) for i in range(13)] and len(data) == 13
    for rank in range(2):
        place = {"train": False, "rank": rank, "world_size": 2}
        for workers in (0, 2):
            assert same(make_loader(data, 8, 3, workers=workers, **place), make_loader(numbered(13), 8, 3, **place))


def test_at_once_every_label_is_known(write, build):
    data = build("hfds", write((5, 4)), "train")
    assert data.labels.tolist() == list(range(9)) and data.labels.dtype == np.int64 and isinstance(data, Cached)
    assert len(build_dataset(f"hfds/{write((5, 4))}", None, "train", limit=3)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_no_sample_twice_and_goes_on_where_it_was_interrupted(write, build, workers):
    data = build("hfids", write((9, 2, 6)), "train", shuffle=4)
    assert isinstance(data, Stream) and data.lengths == [9, 2, 6]
    whole = list(make_loader(data, 8, 3, train=True, epoch=1))
    assert len({label for _, labels in whole for label in labels.tolist()}) == 15
    loader = make_loader(data, 8, 3, train=True, workers=workers)
    for begin in (0, 2):
        loader.set_epoch(1, begin)
        assert same(loader, whole[begin:])


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_columns_are_those_of_the_keys(write, build, reader):
    folder = write((4,), image="img", label="fine_label")
    assert len(build(reader, folder, "train", input_key="img", target_key="fine_label")) == 4
    for keys in ({}, {"input_key": "img"}, {"target_key": "fine_label"}, {"input_key": "img", "target_key": "img"}):
        with pytest.raises(ValueError, match=r"set.*(must be a column of images|cannot be opened)"):
            build(reader, folder, "train", **keys)


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_classes_without_names_need_a_class_map(write, build, tmp_path, reader):
    folder = write((4,), names=False)
    with pytest.raises(ValueError, match=r"does not name its classes: data\.class_map must"):
        build(reader, folder, "train")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    assert build(reader, folder, "train", class_map=str(tmp_path / "names.txt")).classes == ["a", "b", "c", "d"]


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_damaged_rows_are_named_and_nothing_but_their_bytes_is_read(
    write, build, tmp_path, caplog, reader, encode, picture
):
    """A path that a row names may be anything."""
    (tmp_path / "elsewhere.png").write_bytes(encode(picture(8, 8)))

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    rows = {1: {"image": {"bytes": None, "path": str(tmp_path / "elsewhere.png")}}}
    rows[3] = {"image": {"bytes": pickle.dumps(Trap()), "path": None}}
    data = build(reader, write((5,), "test", rows=rows))
    with caplog.at_level(logging.WARNING, logger="s4nd"):
        loader = make_loader(data, 8, 2, train=False, skip_bad=True)
        assert labels_of(loader) == [0, 2, 4] and loader.unreadable == 2
    told = [record.getMessage() for record in caplog.records if record.name == "s4nd"]
    assert "row 1: the row has no bytes" in told[0] and "row 3: not an image" in told[1] and len(told) == 2
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(BadImage, match=r"row 1: the row has no bytes"):
        list(make_loader(data, 8, 2, train=False))


@pytest.mark.parametrize("label", [-1, None])
def test_labels_that_are_no_classes_are_refused_or_reported(write, build, label):
    folder = write((5,), rows={2: {"label": label}})
    with pytest.raises(ValueError, match=rf"labels must be 0 to 4, got {label}"):
        build("hfds", folder, "train")
    loader = make_loader(build("hfids", folder, "train"), 8, 2, train=False)
    with pytest.raises(BadImage, match=rf"row 2: its label must be the number of a class, got {label}"):
        list(loader)


def test_a_file_that_is_damaged_later_is_named_and_counted(write, build, caplog):
    folder = write((9, 4), "test")
    data = build("hfids", folder)
    path = folder / "test-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)  # the beginning of its first page
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="s4nd"):
        loader = make_loader(data, 8, 2, train=False, skip_bad=True)
        seen = labels_of(loader)
    assert loader.unreadable + len(seen) == 13 and loader.unreadable > 0 and {*range(9, 13)} <= {*seen}
    assert "test-00000-of-00002.parquet" in caplog.text


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_what_is_not_there_is_an_error_that_says_so(write, build, tmp_path, reader):
    folder = write((4,))
    with pytest.raises(
        ValueError, match=r"no split test or validation or val for test, data\.test_split names it: .* has train"
    ):
        build(reader, folder)
    assert len(build(reader, folder, test_split="train")) == 4
    with pytest.raises(ValueError, match=r"cannot be opened as a Hugging Face data set"):
        build(reader, tmp_path / "nowhere")


def test_a_stream_is_of_parquet(build, tmp_path):
    pytest.importorskip("datasets", reason="needs the extra: pip install 's4nd[hf]'")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"image": "x", "label": 0}\n')
    with pytest.raises(ValueError, match=r"a stream must be of files of parquet, got .*train\.jsonl; hfds/"):
        build("hfids", tmp_path / "set", "train")


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_a_script_of_a_data_set_is_not_run(build, tmp_path, reader):
    pytest.importorskip("datasets", reason="needs the extra: pip install 's4nd[hf]'")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    for name in (tmp_path / "set", tmp_path / "set" / "set.py"):
        with pytest.raises(ValueError, match=r"cannot be opened as a Hugging Face data set"):
            build(reader, name, "train")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("reader", ["hfds", "hfids"])
def test_without_datasets_the_extra_is_named(monkeypatch, reader):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"s4nd\[hf\]"):
        build_dataset(f"{reader}/x", None, "train")
