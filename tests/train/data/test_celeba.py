"""CelebA against its own lists, real and small ones written here, good and bad."""

import logging

import numpy as np
import pytest
import torch

from s4nd.train.data import build_dataset, make_loader
from s4nd.train.data.celeba import Celeba
from s4nd.train.data.images import read_image

PARTS = {"0.jpg": 0, "1.jpg": 1, "2.jpg": 2, "3.jpg": 0}
PARTITION = [f"{file} {part}" for file, part in PARTS.items()]
ATTRIBUTES = ["4", "Male Young", "0.jpg -1  1", "1.jpg  1  1", "2.jpg  1 -1", "3.jpg -1 -1"]


@pytest.fixture
def write(tmp_path, picture):
    """write(attributes=lines, partition=lines) -> tmp_path, in CelebA's layout with images 0.jpg to 3.jpg."""

    def write(attributes=ATTRIBUTES, partition=PARTITION):
        (tmp_path / "img_align_celeba").mkdir(exist_ok=True)
        for i, file in enumerate(PARTS):
            picture(30, 20, i).save(tmp_path / "img_align_celeba" / file)
        (tmp_path / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
        return tmp_path

    return write


@pytest.mark.parametrize("split, part, count", [("train", "0", 4000), ("test", "2", 500)])
def test_real_images_have_the_attributes_of_the_official_list(split, part, count, shared):
    root = shared / "data" / "celeba"
    data = build_dataset("celeba", root, split)
    listed = dict(line.split() for line in (root / "list_eval_partition.txt").read_text().splitlines())
    _, names, *rows = (root / "list_attr_celeba.txt").read_text().splitlines()
    rows = {row[0]: row[1:] for row in map(str.split, rows) if listed[row[0]] == part}
    assert len(data) == count == len(rows) and data.labels.shape == (count, 40)
    assert data.classes == names.split() and data.classes[20] == "Male" and data.classes[39] == "Young"
    table = np.array(list(rows.values()), dtype=int)
    assert ((table + 1) // 2 == data.labels).all()
    file = list(rows)[7]
    image, label = data[7]
    assert image.shape == (3, 218, 178) and torch.equal(image, read_image(root / "img_align_celeba" / file))
    assert label.tolist() == [int(value == "1") for value in rows[file]]


def test_real_images_are_seen_as_their_central_square(shared):
    """178 of 218 rows, 20 from the top, as the paper crops them."""
    data = build_dataset("celeba", shared / "data" / "celeba", "test", limit=3)
    images, _ = next(iter(make_loader(data, 178, 3, train=False)))
    assert all(torch.equal(image, data[i][0][:, 20:198]) for i, image in enumerate(images))


def test_splits_are_the_official_partitions_and_that_for_validation_is_in_neither(write):
    root = write()
    train, test = Celeba(root, "train"), Celeba(root, "test")
    assert [path[-5:] for path in train.paths] == ["0.jpg", "3.jpg"] and train.labels.tolist() == [[0, 1], [0, 0]]
    assert [path[-5:] for path in test.paths] == ["2.jpg"] and test.labels.tolist() == [[1, 0]]
    assert train.classes == test.classes == ["Male", "Young"]


def test_subset_of_the_images_is_counted_in_one_warning(write, caplog):
    root = write()
    (root / "img_align_celeba" / "0.jpg").unlink()
    with caplog.at_level(logging.WARNING, "s4nd"):
        assert Celeba(root, "train").labels.tolist() == [[0, 0]]
    (record,) = caplog.records
    assert "list_eval_partition.txt: left out 1 of 2 images" in record.getMessage()


def edited(lines, number, line):
    """Lines with one of them, counted from 1, replaced; None: removed."""
    return [new for i, old in enumerate(lines, 1) if (new := line if i == number else old) is not None]


@pytest.mark.parametrize(
    "number, line, message",
    [
        (1, "5", r"list_attr_celeba\.txt: line 1 says that there are 5 images, and 4 are listed"),
        (1, "many", r"list_attr_celeba\.txt: line 1 must be the number of images, got 'many'"),
        (1, None, r"line 1 must be the number of images, got 'Male Young'"),
        (2, "Male Male", r"line 2 must name attributes, each once, got Male, Male"),
        (3, "0.jpg -1", r"line 3 must have 2 values after the file, got 1"),
        (3, "0.jpg -1 1 1", r"line 3 must have 2 values after the file, got 3"),
        (4, "1.jpg 1 0", r"list_attr_celeba\.txt: line 4: values must be -1 or 1, got '0'"),
        (4, "0.jpg 1 1", r"line 4: 0\.jpg is listed already, at .*list_attr_celeba\.txt: line 3"),
        (4, "../1.jpg 1 1", r"line 4 must begin with the name of a file, without folders, got '\.\./1\.jpg'"),
        (4, "a/1.jpg 1 1", r"line 4 must begin with the name of a file, without folders"),
        (4, ".. 1 1", r"line 4 must begin with the name of a file"),
    ],
)
def test_bad_line_of_the_attributes_is_an_error_that_names_it(write, number, line, message):
    with pytest.raises(ValueError, match=message):
        Celeba(write(edited(ATTRIBUTES, number, line)), "train")


@pytest.mark.parametrize(
    "line, message",
    [
        ("1.jpg 3", r"list_eval_partition\.txt: line 2 must be FILE and 0, 1 or 2, got '1\.jpg 3'"),
        ("1.jpg", r"line 2 must be FILE and 0, 1 or 2"),
        ("1.jpg 1 1", r"line 2 must be FILE and 0, 1 or 2"),
        ("a/1.jpg 1", r"line 2 must begin with the name of a file, without folders"),
        ("0.jpg 1", r"line 2: 0\.jpg is listed already, at .*: line 1"),
        ("9.jpg 1", r"must list the same images, got 2 .* only, such as 1\.jpg in list_attr_celeba\.txt"),
    ],
)
def test_bad_line_of_the_partition_is_an_error_that_names_it(write, line, message):
    with pytest.raises(ValueError, match=message):
        Celeba(write(partition=edited(PARTITION, 2, line)), "train")


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt"])
def test_absent_or_binary_list_is_an_error_that_names_it(write, name):
    root = write()
    (root / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{name} must be text"):
        Celeba(root, "train")
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is not there"):
        Celeba(root, "train")


def test_split_without_an_image_is_an_error(write):
    root = write()
    (root / "img_align_celeba" / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 1 images that .* lists is in .*, such as 2\.jpg"):
        Celeba(root, "test")
