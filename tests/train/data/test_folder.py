"""Image folders against the real Imagenette subset and against small trees, good and bad."""

import pytest

from s4nd.train.data import BadImage, build_dataset
from s4nd.train.data.folder import Folder


def test_real_imagenette_is_read_whole_and_as_rgb(shared):
    root = shared / "data" / "imagefolder" / "imagenette"
    train, test = Folder(root, "train"), Folder(root, "test")
    assert (len(train), len(test)) == (2500, 500) and train.classes == test.classes and len(train.classes) == 10
    for i in range(0, 500, 5):
        image, label = test[i]
        assert image.shape == (3, 224, 224) and test.classes[label] in str(test.paths[i])


def test_extensions_count_in_upper_case_too(image_tree, picture):
    picture(4, 4).save(image_tree / "train" / "cat" / "A.JPEG")
    picture(4, 4).save(image_tree / "train" / "dog" / "B.WebP")
    (image_tree / "train" / "dog" / "notes.txt").write_text("not one of them")
    assert len(Folder(image_tree, "train")) == 6


def test_val_and_test_are_both_names_of_the_test_split(image_tree):
    assert len(Folder(image_tree, "test")) == 4
    (image_tree / "val").rename(image_tree / "test")
    assert len(Folder(image_tree, "test")) == 4


def test_text_named_jpg_raises_bad_image_with_its_path(image_tree):
    (image_tree / "train" / "cat" / "text.jpg").write_text("hello")
    data = Folder(image_tree, "train")
    with pytest.raises(BadImage, match=r"train/cat/text\.jpg: not an image"):
        data[2]


def test_absent_split_says_the_layout_and_what_is_there(image_tree):
    (image_tree / "val").rename(image_tree / "valid")
    with pytest.raises(FileNotFoundError, match=r"val/CLASS/\*\.jpg or .*test/CLASS/\*\.jpg .*: train, valid"):
        Folder(image_tree, "test")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        build_dataset("folder", image_tree / "nowhere", "train")


def test_class_without_an_image_is_named(image_tree):
    (image_tree / "train" / "emu").mkdir()
    with pytest.raises(FileNotFoundError, match="emu"):
        Folder(image_tree, "train")


def test_classes_of_one_split_only_are_an_error(image_tree):
    """Labels count folders: without the check "dog" would be class 0 of the test split and class 1 of training."""
    (image_tree / "val" / "cat").rename(image_tree / "val" / "emu")
    with pytest.raises(ValueError, match="cat, emu"):
        Folder(image_tree, "test")
