"""Data sets of videos: the official HMDB-51 files against their published counts, small trees good and bad."""

import re

import pytest

from s4nd.train.data import build_dataset
from s4nd.train.data.video_sets import HMDB51, UCF101, VideoFolder, hmdb51_lists, ucf101_lists


@pytest.fixture
def tree(tmp_path):
    """Empty files are enough: a data set opens none."""
    for split in ("train", "val"):
        for name in ("jump", "run"):
            (tmp_path / split / name).mkdir(parents=True)
            for file in ("a.mp4", "b.AVI"):
                (tmp_path / split / name / file).touch()
    return tmp_path


@pytest.fixture
def hmdb(tmp_path):
    for name in ("jump", "run"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{name}_(x)#{i}!.avi").touch()
        lines = [f"{name}_(x)#{i}!.avi {tag} " for i, tag in enumerate((1, 2, 0))]
        (tmp_path / f"{name}_test_split2.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def ucf(tmp_path):
    for name in ("Archery", "Biking"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"v_{i}.avi").touch()
    (tmp_path / "classInd.txt").write_text("1 Biking\n2 Archery\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_0.avi 2\nBiking/v_0.avi 1\n\n")
    (tmp_path / "testlist01.txt").write_text("Archery/v_1.avi\nBiking/v_1.avi\n")
    return tmp_path


@pytest.mark.parametrize("official_split", [1, 2, 3])
def test_official_splits_of_hmdb51_have_their_counts(shared, official_split):
    lists = shared / "data" / "hmdb51_splits"
    classes, train, labels = hmdb51_lists(lists, "train", official_split)
    _, test, _ = hmdb51_lists(lists, "test", official_split)
    assert (len(classes), len(train), len(test)) == (51, 3570, 1530)
    assert len({*train, *test}) == 5100 and all(labels.count(i) == 70 for i in range(51))
    assert train[0].split("/")[0] == classes[labels[0]] == "brush_hair"


def test_hmdb51_without_its_videos_says_what_is_needed(shared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"3570 of the 3570 videos .* must hold CLASS/FILE: brush_hair/.*, and 3566 more$"
    ):
        HMDB51(tmp_path, "train", shared / "data" / "hmdb51_splits")


def test_hmdb51_tags_are_train_test_and_unused(hmdb):
    for split, place in (("train", 0), ("test", 1)):
        data = HMDB51(hmdb, split, hmdb, 2)
        assert data.classes == ["jump", "run"] and data.labels.tolist() == [0, 1]
        assert data[1] == (str(hmdb / "run" / f"run_(x)#{place}!.avi"), 1)


def test_absent_split_file_is_named(hmdb, ucf):
    with pytest.raises(FileNotFoundError, match=r"CLASS_test_split3\.txt in .*, which holds none"):
        HMDB51(hmdb, "train", hmdb, 3)
    with pytest.raises(FileNotFoundError, match=r"trainlist02\.txt, which is not there"):
        UCF101(ucf, "train", ucf, 2)


@pytest.mark.parametrize("line", ["x.avi", "x.avi 3", "../x.avi 1", "a/../../x.avi 1", "x 1"])
def test_line_of_another_form_is_an_error_with_its_number(hmdb, line):
    path = hmdb / "jump_test_split2.txt"
    path.write_text(f"jump_(x)#0!.avi 1\n{line}\n")
    with pytest.raises(ValueError, match=rf"jump_test_split2\.txt: line 2 must be .*, got {re.escape(repr(line))}"):
        hmdb51_lists(hmdb, "train", 2)


def test_ucf101_numbers_its_classes_by_its_index(ucf):
    train, test = UCF101(ucf, "train", ucf), UCF101(ucf, "test", ucf)
    assert train.classes == test.classes == ["Biking", "Archery"]
    assert train.labels.tolist() == test.labels.tolist() == [1, 0]
    assert test[0] == (str(ucf / "Archery" / "v_1.avi"), 1)


@pytest.mark.parametrize("line", ["Archery/v_0.avi 1", "Cooking/v_0.avi 1"])
def test_ucf101_list_that_contradicts_its_index_is_an_error(ucf, line):
    (ucf / "trainlist01.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"does not agree with the classes of .*classInd\.txt"):
        ucf101_lists(ucf, "train", 1)


def test_lists_may_have_spaces_and_begin_with_a_byte_order_mark(tmp_path):
    for name in ("Base ball", "Golf"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"v 0{i}.avi").touch()
    (tmp_path / "classInd.txt").write_text("1 Base ball\r\n2 Golf\r\n", encoding="utf-8-sig")
    (tmp_path / "trainlist01.txt").write_text("Base ball/v 00.avi 1\nGolf/v 00.avi 2\n", encoding="utf-8-sig")
    (tmp_path / "testlist01.txt").write_text("Golf/v 01.avi\nBase ball/v 01.avi\n", encoding="utf-8-sig")
    train, test = UCF101(tmp_path, "train", tmp_path), UCF101(tmp_path, "test", tmp_path)
    assert train.classes == ["Base ball", "Golf"] and train.labels.tolist() == [0, 1]
    assert test[0] == (str(tmp_path / "Golf" / "v 01.avi"), 1)


def test_hidden_files_among_the_lists_are_no_classes(hmdb):
    (hmdb / "._jump_test_split2.txt").write_bytes(b"\0\5\x16\7")
    (hmdb / "jump_test_split2.txt").write_text("jump_(x)#0!.avi 1\n", encoding="utf-8-sig")
    assert HMDB51(hmdb, "train", hmdb, 2).classes == ["jump", "run"]


def test_class_folders_hold_videos_of_any_container(tree):
    data = VideoFolder(tree, "test")
    assert data.classes == ["jump", "run"] and data.labels.tolist() == [0, 0, 1, 1]
    assert data[3] == (str(tree / "val" / "run" / "b.AVI"), 1)
    others = [
        f"x.{kind}"
        for kind in ["mov", "mkv", "webm", "m4v", "mpg", "mpeg", "ts", "wmv", "m2ts", "mts", "3gp", "flv", "ogv"]
    ]
    for file in others:
        (tree / "val" / "run" / file).touch()
    assert len(VideoFolder(tree, "test")) == 4 + len(others)


def test_absent_split_says_the_layout_for_videos(tree):
    (tree / "val").rename(tree / "valid")
    with pytest.raises(FileNotFoundError, match=r"video folders for test must be .*val/CLASS/\*\.mp4 or "):
        VideoFolder(tree, "test")


def test_limit_takes_the_classes_in_turn(tree):
    pytest.importorskip("av", reason="needs PyAV, the extra `video`")
    data = build_dataset("video", tree, "train", limit=2)
    assert sorted(data.labels) == [0, 1] and data[0][0].startswith(str(tree))


def test_lists_are_for_listed_data_sets_only(tree):
    with pytest.raises(ValueError, match="hmdb51 needs the folder of its official split files as lists, got None"):
        build_dataset("hmdb51", tree, "train")
    with pytest.raises(ValueError, match="video takes no lists"):
        build_dataset("video", tree, "train", lists=tree)
