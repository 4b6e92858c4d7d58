"""Parquet data sets against the real CIFAR-10 files and against small files written here, good and bad."""

import json
import pickle

import numpy as np
import pytest

from s4nd.train.data import BadImage, build_dataset, make_loader
from s4nd.train.data.images import decode
from s4nd.train.data.parquet import Parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def write(tmp_path, picture, encode):
    """write(name, labels, images=None, names=None): a file in the layout below tmp_path; returns tmp_path."""

    def write(name, labels, images=None, names=None, path="{}.png", kinds=(), columns=("image", "label")):
        """kinds: Arrow types of bytes, path and label; columns: what image and label are called."""
        images = [encode(picture(6, 8, i)) for i in range(len(labels))] if images is None else images
        column = [{"bytes": data, "path": path and path.format(i)} for i, data in enumerate(images)]
        bytes_kind, path_kind, label_kind = kinds or (pa.binary(), pa.string(), pa.int64())
        kind = pa.struct([("bytes", bytes_kind), ("path", path_kind)])
        table = pa.table(dict(zip(columns, (pa.array(column, kind), pa.array(labels, label_kind)), strict=True)))
        if names:
            info = {"info": {"features": {columns[1]: {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / name)
        return tmp_path

    return write


def test_real_cifar10_has_its_rows_and_class_names(shared):
    test = build_dataset("parquet", shared / "data" / "cifar10", "test")
    assert len(test) == 10_000 and np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[:3] == ["airplane", "automobile", "bird"] and test.classes[9] == "truck"
    image, label = test[9_999]
    assert image.shape == (3, 32, 32) and label == test.labels[9_999]


def test_real_rows_keep_image_and_label_together(shared):
    file = shared / "data" / "cifar10" / "test.parquet"
    row = pq.read_table(file).slice(1234, 1).to_pylist()[0]
    image, label = Parquet(file.parent, "test")[1234]
    assert label == row["label"] and (image == decode(row["image"]["bytes"], "")).all()


@pytest.mark.parametrize("name", ["test.parquet", "data/test-00000-of-00001.parquet", "data/validation-0.parquet"])
def test_usual_file_names_are_found(write, name):
    assert len(Parquet(write(name, [0, 1]), "test")) == 2


def test_several_files_are_one_data_set_in_order(write):
    write("data/train-00000.parquet", [0, 1, 2])
    data = Parquet(write("data/train-00001.parquet", [3, 4]), "train")
    assert [data[i][1] for i in range(5)] == [0, 1, 2, 3, 4] and len(data) == 5
    assert (data[3][0] == data[0][0]).all() and not (data[3][0] == data[1][0]).all()  # row 0 of either file


def test_numbers_are_the_class_names_where_the_file_has_none(write):
    write("train.parquet", [0, 2, 5])
    root = write("test.parquet", [0, 1])
    assert Parquet(root, "train").classes == Parquet(root, "test").classes == ["0", "1", "2", "3", "4", "5"]


def test_damaged_row_raises_bad_image_with_file_and_row(write, picture, encode):
    good = encode(picture(6, 8))
    write("train-0.parquet", [0, 1], [good, good])
    data = Parquet(write("train-1.parquet", [0, 1, 0], [good, b"no image", None]), "train")
    with pytest.raises(BadImage, match=r"train-1\.parquet, row 1 \(1\.png\): not an image"):
        data[3]
    with pytest.raises(BadImage, match=r"train-1\.parquet, row 2 \(2\.png\): the row has no bytes"):
        data[4]


def test_other_columns_are_an_error_that_lists_them(tmp_path):
    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"columns image .* and label .*; found img: binary, label: int64"):
        Parquet(tmp_path, "train")


@pytest.mark.parametrize("column", [{"label": ["cat"]}, {"image": [b"x"]}, {"image": [{"path": "a.png"}]}])
def test_columns_of_other_types_are_an_error(tmp_path, column):
    columns = {"image": [{"bytes": b"x", "path": "a.png"}], "label": [0]} | column
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet must have the columns"):
        Parquet(tmp_path, "train")


def test_image_without_path_field_is_accepted(tmp_path, picture, encode):
    columns = {"image": [{"bytes": encode(picture(6, 8))}, {"bytes": b"x"}], "label": [0, 0]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    data = Parquet(tmp_path, "train")
    assert data[0][0].shape == (3, 6, 8)
    with pytest.raises(BadImage, match=r"row 1: not an image"):
        data[1]


@pytest.mark.parametrize("labels, message", [([-1, 0], "got -1 to 0"), ([0, 2], "must be 0 to 1, got 0 to 2")])
def test_labels_that_are_no_classes_are_an_error(write, labels, message):
    with pytest.raises(ValueError, match=message):
        Parquet(write("train.parquet", labels, names=["cat", "dog"]), "train")


def test_missing_label_and_empty_file_are_errors(write):
    with pytest.raises(ValueError, match="1 rows have no label"):
        Parquet(write("train.parquet", [0, None]), "train")
    with pytest.raises(ValueError, match="holds no row"):
        Parquet(write("test.parquet", [], names=["cat"]), "test")


def test_absent_files_and_folders_are_named(tmp_path):
    (tmp_path / "readme.md").touch()
    with pytest.raises(FileNotFoundError, match=r"test\*\.parquet or validation\*\.parquet.*readme\.md"):
        Parquet(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Parquet(tmp_path / "nowhere", "train")


def test_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read as parquet"):
        Parquet(tmp_path, "train")


def test_data_set_survives_pickling(write):
    data = Parquet(write("train.parquet", [0, 1]), "train")
    copy = pickle.loads(pickle.dumps(data))
    assert (copy[1][0] == data[1][0]).all() and copy[1][1] == 1


def test_workers_read_the_same_rows_as_one_process(shared):
    data = build_dataset("parquet", shared / "data" / "cifar10", "test", limit=40)
    alone, helped = (list(make_loader(data, 16, 16, train=False, workers=workers)) for workers in (0, 2))
    for (images, labels), (others, their_labels) in zip(alone, helped, strict=True):
        assert (images == others).all() and (labels == their_labels).all()


KINDS = [
    (pa.binary(), pa.string(), pa.int64()),
    (pa.large_binary(), pa.large_string(), pa.int32()),
    (pa.large_binary(), pa.null(), pa.uint8()),
    (pa.null(), pa.string(), pa.int16()),
]
if hasattr(pa, "binary_view"):
    KINDS.append((pa.binary_view(), pa.string_view(), pa.uint64()))


@pytest.mark.parametrize("order", [1, -1])
def test_shards_of_mixed_arrow_types_are_read_as_one(write, picture, encode, order):
    data = encode(picture(6, 8))
    kinds = KINDS[::order]
    for i, (bytes_kind, path_kind, label_kind) in enumerate(kinds):
        images = [None if bytes_kind == pa.null() else data]
        path = None if path_kind == pa.null() else f"{i}.png"
        root = write(f"train-{i}.parquet", [i], images, path=path, kinds=(bytes_kind, path_kind, label_kind))
    parts = Parquet(root, "train")
    assert parts.labels.tolist() == list(range(len(kinds))) and parts.labels.dtype == np.int64
    for i, (bytes_kind, path_kind, _) in enumerate(kinds):
        if bytes_kind == pa.null():
            with pytest.raises(BadImage, match=rf"train-{i}\.parquet, row 0 \({i}\.png\): the row has no bytes"):
                parts[i]
        else:
            assert (parts[i][0] == decode(data, "")).all()
        assert parts.paths[i].as_py() == (None if path_kind == pa.null() else f"{i}.png")


@pytest.mark.parametrize(
    "column, message",
    [
        ({"image": [{"bytes": [1, 2]}]}, r"train-1\.parquet: the bytes of image must be binary, got list"),
        ({"image": [{"bytes": "text"}]}, r"train-1\.parquet: the bytes of image must be binary, got string"),
        ({"label": [0.5]}, r"train-1\.parquet must have the columns .*label: double"),
    ],
)
def test_shard_that_cannot_join_the_others_is_named(write, column, message):
    root = write("train-0.parquet", [0])
    pq.write_table(pa.table({"image": [{"bytes": b"x"}], "label": [0]} | column), root / "train-1.parquet")
    with pytest.raises(ValueError, match=message):
        Parquet(root, "train")


@pytest.mark.parametrize("columns", [("img", "label"), ("img", "fine_label")])
def test_columns_of_cifar_on_the_hub_are_known(write, columns):
    write("train.parquet", [1, 0], names=["cat", "dog"], columns=columns)
    data = Parquet(write("test.parquet", [1], names=["cat", "dog"], columns=columns), "train")
    assert data.classes == ["cat", "dog"] and data[0][1] == 1 and data[0][0].shape == (3, 6, 8)


@pytest.mark.parametrize("other", ["train-1.parquet", "test.parquet"])
@pytest.mark.parametrize(
    "names, message",
    [
        (["cat", "emu"], r"only in .*train-0.parquet: dog; only in .*: emu"),
        (["dog", "cat"], r"another order: number 0 is cat in .*train-0.parquet, dog in .*"),
        (["cat"], r"has other classes .*: only in .*: dog"),
        (None, r"does not name its classes"),
    ],
)
def test_file_of_other_classes_is_named(write, other, names, message):
    """Of the same split or of the other one; labels are numbers, and would mean something else."""
    write("train-0.parquet", [0, 1], names=["cat", "dog"])
    with pytest.raises(ValueError, match=message) as error:
        Parquet(write(other, [0], names=names), "train")
    assert str(error.value).startswith(str(write(other, [0]) / other))


def test_label_that_is_no_class_is_told_with_its_file(write):
    write("train-0.parquet", [0, 1], names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"labels in .*train-1\.parquet must be 0 to 1, got 2 to 2"):
        Parquet(write("train-1.parquet", [2], names=["cat", "dog"]), "train")


@pytest.mark.parametrize("names", ["cat", [1, 2], {"a": 1}])
def test_names_that_are_none_are_refused(write, names):
    with pytest.raises(ValueError, match=r"train\.parquet: the classes in its metadata must be a list of names"):
        Parquet(write("train.parquet", [0], names=names), "train")


def test_hidden_files_and_links_are_no_shards(write):
    root = write("data/train-0.parquet", [0, 1])
    (root / "data" / "._train-0.parquet").write_bytes(b"x")
    (root / "data" / "train-1.parquet").symlink_to("train-0.parquet")
    assert [file.name for file in Parquet(root, "train").files] == ["train-0.parquet"]
    (root / ".cache").mkdir()
    with pytest.raises(FileNotFoundError, match=r": data$"):
        Parquet(root, "test")


@pytest.fixture
def write_attributes(tmp_path, picture, encode):
    """write_attributes(name, **columns beside the image) -> tmp_path."""

    def write(name, **columns):
        count = len(next(iter(columns.values())))
        images = [{"bytes": encode(picture(6, 8, i)), "path": f"{i}.png"} for i in range(count)]
        pq.write_table(pa.table({"image": images, **columns}), tmp_path / name)
        return tmp_path

    return write


def test_boolean_columns_are_attributes(write_attributes, picture):
    """Of any name, among columns of other types, as CelebA's on the Hub."""
    columns = {"celeb_id": [7, 8, 9], "5_o_Clock": [True, False, False], "a.b": [True, True, False]}
    data = Parquet(write_attributes("train.parquet", **columns), "train")
    assert data.classes == ["5_o_Clock", "a.b"] and data.labels.dtype == np.uint8
    assert data.labels.tolist() == [[1, 1], [0, 1], [0, 0]] and data[1][1].tolist() == [0, 1]
    assert (data[1][0].permute(1, 2, 0).numpy() == np.asarray(picture(6, 8, 1))).all()


def test_label_comes_before_boolean_columns(write_attributes):
    data = Parquet(write_attributes("train.parquet", label=[1, 0], seen=[True, False]), "train")
    assert data.labels.tolist() == [1, 0] and data.classes == ["0", "1"]


def test_shards_with_attributes_are_one_data_set_in_order(write_attributes):
    write_attributes("train-0.parquet", a=[True, False], b=[False, False])
    root = write_attributes("train-1.parquet", a=[False], b=[True])
    assert Parquet(root, "train").labels.tolist() == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("other", ["train-1.parquet", "test.parquet"])
@pytest.mark.parametrize(
    "columns, message",
    [
        ({"b": [True], "a": [True]}, r"another order: number 0 is a in .*, b in "),
        ({"a": [True]}, r"only in .*: b"),
        ({"label": [0]}, r"train-0\.parquet attributes: all files must have the same"),
    ],
)
def test_files_of_other_attributes_are_refused(write_attributes, other, columns, message):
    write_attributes("train-0.parquet", a=[True], b=[False])
    with pytest.raises(ValueError, match=message):
        Parquet(write_attributes(other, **columns), "train")


def test_missing_attribute_is_an_error(write_attributes):
    root = write_attributes("train.parquet", a=[True, False], b=pa.array([None, True], pa.bool_()))
    with pytest.raises(ValueError, match=r"train\.parquet: 1 rows have no b"):
        Parquet(root, "train")


def test_columns_of_one_name_are_an_error(tmp_path):
    image = pa.array([{"bytes": b"x", "path": "a"}])
    pq.write_table(
        pa.table([image, pa.array([True]), pa.array([False])], ["image", "a", "a"]), tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match=r"train\.parquet has columns of the same name: image, a, a"):
        Parquet(tmp_path, "train")
