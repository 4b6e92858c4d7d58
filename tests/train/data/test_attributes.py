"""Lists of images with attributes as CSV files, good and bad, against what is written in them."""

import logging

import numpy as np
import pytest
import torch

from s4nd.train.data import BadImage, build_dataset, make_loader, split_off
from s4nd.train.data.attributes import CsvList
from s4nd.train.data.dataset import balanced_order
from s4nd.train.data.images import read_image

ROWS = ["a.png,1,0", "deep/b.png,0,0", "c.png,0,1"]


@pytest.fixture
def write(tmp_path, picture):
    """write(lines, header) -> tmp_path, with test.csv and images a.png, deep/b.png and c.png."""

    def write(lines=ROWS, header="file,smiling,young", text=None):
        (tmp_path / "deep").mkdir(exist_ok=True)
        for i, file in enumerate(("a.png", "deep/b.png", "c.png")):
            picture(10 + i, 12, i).save(tmp_path / file)
        (tmp_path / "test.csv").write_bytes(("\n".join([header, *lines]) if text is None else text).encode())
        return tmp_path

    return write


def test_list_gives_each_image_its_attributes(write):
    root = write()
    data = CsvList(root, "test")
    assert data.classes == ["smiling", "young"]
    assert data.labels.tolist() == [[1, 0], [0, 0], [0, 1]] and data.labels.dtype == np.uint8
    for i, file in enumerate(("a.png", "deep/b.png", "c.png")):
        image, label = data[i]
        assert torch.equal(image, read_image(root / file)) and label.tolist() == data.labels[i].tolist()


def test_minus_one_stands_for_zero(write):
    signs = [line.replace(",0", ",-1") for line in ROWS]
    assert CsvList(write(signs), "test").labels.tolist() == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    "text", ["﻿file, smiling ,young\r\n\r\na.png, 1,0\r\n", 'file,"smiling","young"\n"a.png",1,0\n']
)
def test_what_spreadsheets_write_is_read(write, text):
    data = CsvList(write(text=text), "test")
    assert data.classes == ["smiling", "young"] and data.labels.tolist() == [[1, 0]]


def test_batches_hold_the_attributes(write):
    batches = make_loader(build_dataset("csv", write(), "test"), 8, 2, train=False)
    labels = [labels for _, labels in batches]
    assert [part.tolist() for part in labels] == [[[1, 0], [0, 0]], [[0, 1]]] and labels[0].dtype == torch.int64


def test_cache_returns_the_same_attributes(write):
    data = build_dataset("csv", write(), "test")
    first, again = data[2], data[2]
    assert data.kept[2] and torch.equal(first[0], again[0]) and first[1].tolist() == again[1].tolist() == [0, 1]


def test_images_that_are_not_there_are_left_out_in_one_warning(write, caplog):
    with caplog.at_level(logging.WARNING, "s4nd"):
        data = CsvList(write(["x.png,1,1", *ROWS, "gone/y.png,1,1"]), "test")
    assert data.labels.tolist() == [[1, 0], [0, 0], [0, 1]] and [path[-5:] for path in data.paths] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    (record,) = caplog.records
    assert "test.csv: left out 2 of 5 images" in record.getMessage() and record.getMessage().endswith("first is x.png")


def test_image_that_cannot_be_read_is_a_bad_image(write):
    root = write()
    (root / "c.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"c\.png: not an image"):
        CsvList(root, "test")[2]


@pytest.mark.parametrize(
    "lines, header, message",
    [
        (ROWS, "image,smiling,young", r"test\.csv: line 1 must be file,ATTRIBUTE,\.\.\., got 'image,smiling,young'"),
        (ROWS, "file", r"line 1 must name attributes, each once, got none"),
        (ROWS, "file,young,young", r"line 1 must name attributes, each once, got young, young"),
        (ROWS, "file,young,", r"line 1 must name attributes, each once"),
        (ROWS, "file,smiling,yo\0ung", r"line 1 must name attributes in at most 100 printable .*, got 'yo\\x00ung'"),
        (ROWS, "file,smiling," + "y" * 101, r"line 1 must name attributes in at most 100 printable .*, got 'y{80}'$"),
        ([*ROWS, "d\0.png,1,0"], None, r"line 5 must begin with a file below"),
        ([*ROWS, "d.png,1,0\0"], None, r"line 5: values must be 0 and 1"),
        ([*ROWS, "d" * 200_000 + ",1,0"], None, r"test\.csv: after line \d: not CSV in UTF-8: field larger"),
        ([*ROWS, "d.png,1"], None, r"test\.csv: line 5 must have 2 values after the file, got 1"),
        ([*ROWS, "d.png,1,0,0"], None, r"line 5 must have 2 values after the file, got 3"),
        ([*ROWS, "d.png,1,2"], None, r"line 5: values must be 0 and 1, or -1 and 1 in the whole file, .* '0', '2'"),
        ([*ROWS, "d.png,1,"], None, r"line 5: values must be 0 and 1"),
        ([*ROWS, "d.png,1,-1"], None, r"line 5: values must be .* in the whole file, besides 1 are '-1', '0'"),
        ([*ROWS, "a.png,1,1"], None, r"line 5: a\.png is listed already, at .*test\.csv: line 2"),
        ([*ROWS, "../a.png,1,1"], None, r"line 5 must begin with a file below the folder .*, got '\.\./a\.png'"),
        ([*ROWS, "deep/../a.png,1,1"], None, r"line 5 must begin with a file below"),
        ([*ROWS, "./a.png,1,1"], None, r"line 5 must begin with a file below"),
        ([*ROWS, "/etc/a.png,1,1"], None, r"line 5 must begin with a file below"),
        ([*ROWS, r"deep\b.png,1,1"], None, r"line 5 must begin with a file below"),
        ([*ROWS, ",1,1"], None, r"line 5 must begin with a file below"),
        ([*ROWS, 'd.png,"1,1'], None, r"test\.csv: after line \d: not CSV in UTF-8: "),
    ],
)
def test_list_that_is_not_one_is_an_error_that_names_the_line(write, lines, header, message):
    root = write(lines, header or "file,smiling,young")
    with pytest.raises(ValueError, match=message):
        CsvList(root, "test")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_list_in_another_encoding_is_an_error_that_names_it(write, encoding):
    root = write()
    (root / "test.csv").write_bytes("file,müde\na.png,1\n".encode(encoding))
    with pytest.raises(ValueError, match=r"test\.csv: after line 0: not CSV in UTF-8"):
        CsvList(root, "test")


def test_message_about_a_name_of_any_length_is_short(write):
    with pytest.raises(FileNotFoundError) as error:
        CsvList(write(["x" * 100_000 + ".png,1,1"]), "test")
    assert len(str(error.value)) < 500


def test_absent_list_and_absent_images_are_errors(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"need .*train\.csv; in .*: a\.png, c\.png, deep, test\.csv"):
        CsvList(write(), "train")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 1 images that .*test\.csv lists is in .*, such as x\.png"
    ):
        CsvList(write(["x.png,1,1"]), "test")
    with pytest.raises(FileNotFoundError, match=r"none of the 0 images"):
        CsvList(write([]), "test")
    with pytest.raises(FileNotFoundError, match=r"in .*nowhere: nothing"):
        CsvList(tmp_path / "nowhere", "test")


def test_balanced_order_of_attributes_is_a_fixed_shuffle():
    labels = np.random.default_rng(0).integers(0, 2, (50, 3), dtype=np.uint8)
    order = balanced_order(labels)
    assert sorted(order) == list(range(50)) and order.tolist() == balanced_order(1 - labels).tolist() != sorted(order)


def test_limit_and_validation_part_keep_images_and_attributes_together(coloured):
    whole = build_dataset("csv", coloured, "train")
    rest, aside = split_off(whole, 0.25)
    assert (len(rest), len(aside)) == (18, 6) and not {*rest.indices} & {*aside.indices}
    for part in (rest, aside, build_dataset("csv", coloured, "train", limit=5)):
        for i in range(len(part)):
            image, label = part[i]
            seen = image.float().mean((1, 2)) > 120  # 60 or 180, and noise
            assert label.tolist() == part.labels[i].tolist() == seen.int().tolist()
