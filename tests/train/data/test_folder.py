"""Image folders against the real Imagenette subset and against small trees, good and bad."""

import logging
import os

import pytest

from s4nd.train.data import BadImage, build_dataset
from s4nd.train.data.folder import Folder
from s4nd.train.data.video_sets import VideoFolder


def names(data):
    """CLASS/FILE of every item, by the end of its path."""
    return ["/".join(str(path).split(os.sep)[-2:]) for path in data.paths]


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
    assert len(Folder(image_tree, "train")) == 6


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"])
def test_every_format_that_can_be_decoded_is_listed_and_read(image_tree, picture, ending):
    picture(4, 6).save(image_tree / "train" / "cat" / f"A.{ending}")
    image, label = Folder(image_tree, "train")[2]
    assert image.shape == (3, 4, 6) and label == 0


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


@pytest.mark.parametrize("split, folder", [("train", "train"), ("test", "val")])
def test_class_without_an_image_is_named_with_its_split_and_folder(image_tree, split, folder):
    for name in ("train", "val"):
        (image_tree / name / "emu").mkdir()
    (image_tree / folder / "emu" / "a.heic").touch()
    (image_tree / folder / "emu" / ".a.png").touch()
    with pytest.raises(
        FileNotFoundError, match=rf"class emu of {split} needs .* in .*{folder}/emu; there are 1 \.heic"
    ):
        Folder(image_tree, split)


def test_split_without_a_class_is_an_error(image_tree):
    (image_tree / "val").rename(image_tree / "other")
    (image_tree / "val" / ".cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"val must hold a folder for each class of test, it holds none"):
        Folder(image_tree, "test")


def test_files_left_out_are_counted_by_extension_in_one_warning(image_tree, picture, caplog):
    for name in ("cat/a.HEIC", "cat/deeper/b.heic", "dog/notes.txt", "dog/raw", "dog/.hidden.txt", "dog/Thumbs.db"):
        (image_tree / "train" / name).parent.mkdir(exist_ok=True)
        (image_tree / "train" / name).touch()
    picture(4, 4).save(image_tree / "train" / "stray.png")
    (image_tree / "train" / "README.md").touch()
    with caplog.at_level(logging.WARNING, "s4nd"):
        assert len(Folder(image_tree, "train")) == 4
        Folder(image_tree, "test")
    (record,) = caplog.records
    assert record.name == "s4nd" and f"{image_tree / 'train'}: left out 5 files" in record.getMessage()
    found = record.getMessage().split(": ")[-1].split(", ")
    assert sorted(found) == ["1 .txt", "1 in no class folder", "1 without extension", "2 .heic"]


def test_left_out_videos_are_counted_too(image_tree, caplog):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (image_tree / split / name / "a.mp4").touch()
    assert len(VideoFolder(image_tree, "train")) == 2
    assert "left out 4 files" in caplog.text and "4 .png" in caplog.text


HIDDEN = [".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"]


@pytest.mark.parametrize("name", [*HIDDEN, "__pycache__"])
def test_hidden_folder_is_no_data_wherever_it_stands(image_tree, picture, caplog, name):
    expected = names(Folder(image_tree, "train"))
    for place in ("", "train", "train/cat", "train/cat/deeper", "val"):
        (image_tree / place / name).mkdir(parents=True)
        picture(4, 4).save(image_tree / place / name / "a.png")
    train, test = Folder(image_tree, "train"), Folder(image_tree, "test")
    assert train.classes == test.classes == ["cat", "dog"] and names(train) == expected and len(test) == 4
    assert not caplog.records
    (image_tree / "val").rename(image_tree / "valid")
    with pytest.raises(FileNotFoundError, match=r": train, valid$"):
        Folder(image_tree, "test")


@pytest.mark.parametrize("name", [".DS_Store", "._1.png", ".1.png", "Thumbs.db", "desktop.ini"])
def test_hidden_file_is_no_data_and_not_worth_a_warning(image_tree, caplog, name):
    for place in ("", "train", "train/cat"):
        (image_tree / place / name).write_bytes(b"x")
    assert len(Folder(image_tree, "train")) == 4 and not caplog.records


def test_image_counts_once_however_links_name_it(image_tree):
    cat = image_tree / "train" / "cat"
    (cat / "deeper").mkdir()
    (cat / "2.png").symlink_to("0.png")
    os.link(cat / "0.png", cat / "3.png")
    (cat / "deeper" / "4.png").symlink_to("../1.png")
    (cat / "same").symlink_to("deeper")
    (cat / "deeper" / "loop").symlink_to("..")
    (cat / "self").symlink_to("self")
    assert names(Folder(image_tree, "train")) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


def test_linked_classes_and_images_are_data(image_tree):
    """Stores of large files keep links in the tree."""
    (image_tree / ".store").mkdir()
    (image_tree / "train" / "cat").rename(image_tree / ".store" / "x")
    (image_tree / "train" / "cat").symlink_to(image_tree / ".store" / "x")
    (image_tree / "train" / "dog" / "0.png").rename(image_tree / ".store" / "y")
    (image_tree / "train" / "dog" / "0.png").symlink_to(image_tree / ".store" / "y")
    assert names(Folder(image_tree, "train")) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder"])
def test_one_file_in_two_classes_is_an_error_that_names_both(image_tree, link):
    cat, dog = image_tree / "train" / "cat", image_tree / "train" / "dog"
    if link == "symbolic":
        (dog / "9.png").symlink_to(cat / "1.png")
    elif link == "hard":
        os.link(cat / "1.png", dog / "9.png")
    else:
        (dog / "9").symlink_to(cat)
    with pytest.raises(ValueError, match=r"one file is in two classes: .*train/cat/\d\.png is .*train/dog/9"):
        Folder(image_tree, "train")


def test_link_to_nothing_is_an_image_that_cannot_be_read(image_tree):
    (image_tree / "train" / "cat" / "2.png").symlink_to("gone.png")
    with pytest.raises(BadImage, match=r"cat/2\.png: FileNotFoundError"):
        Folder(image_tree, "train")[2]


def test_folders_within_a_class_belong_to_it(image_tree, picture):
    place = image_tree / "train" / "cat" / "x" / "y"
    place.mkdir(parents=True)
    picture(4, 4).save(place / "a.png")
    picture(4, 4).save(place.parent / "a.png")
    expected = ["cat/0.png", "cat/1.png", "x/a.png", "y/a.png", "dog/0.png", "dog/1.png"]
    assert names(Folder(image_tree, "train")) == expected


def test_classes_of_one_split_only_are_an_error(image_tree):
    """Labels count folders: without the check "dog" would be class 0 of the test split and class 1 of training."""
    (image_tree / "val" / "cat").rename(image_tree / "val" / "emu")
    with pytest.raises(ValueError, match="cat, emu"):
        Folder(image_tree, "test")


def test_many_odd_classes_are_not_all_listed(image_tree, picture):
    for i in range(100):
        (image_tree / "train" / f"class{i:02}").mkdir()
        picture(4, 4).save(image_tree / "train" / f"class{i:02}" / "a.png")
    with pytest.raises(ValueError, match=r"only one of them has class00, class01, class02, class03, and 96 more$"):
        Folder(image_tree, "test")
