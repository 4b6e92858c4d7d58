"""WebDataset shards against what was written into them, from folders and URLs; and shards that mean harm."""

import functools
import http.server
import io
import json
import logging
import pickle
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import torch

from s4nd.train.data import BadImage, Reading, build_dataset, make_loader
from s4nd.train.data.shards import split_name

GOOD = "0001"  # a sample that must be read whatever stands beside it


def labels_of(loader):
    return [label for _, labels in loader for label in labels.tolist()]


@pytest.fixture
def shard(tmp_path, tar, picture, encode):
    """shard({member: bytes}) -> batches, and warnings, of a shard of these samples after a good one; counted by itself."""
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")

    def read(members, caplog):
        good = {f"{GOOD}.png": encode(picture(8, 8)), f"{GOOD}.cls": b"1"}
        tar(tmp_path / "a" / "evil-0.tar", good | members)
        (tmp_path / "classes.txt").write_text("no\nyes\n")
        reading = Reading(test_split="evil-0.tar", class_map=str(tmp_path / "classes.txt"))
        data = build_dataset("wds/evil", tmp_path / "a", "test", reading=reading)
        with caplog.at_level(logging.WARNING, logger="s4nd"):
            loader = make_loader(data, 8, 4, train=False, skip_bad=True)
            labels = labels_of(loader)
        told = [record.getMessage() for record in caplog.records if record.name == "s4nd"]
        return labels, loader.unreadable, told, data

    return read


def trap(path):
    """A pickle that writes a file when it is loaded."""

    class Trap:
        def __reduce__(self):
            return (open, (str(path), "w"))

    return pickle.dumps(Trap())


def test_members_that_are_no_images_and_no_labels_are_never_loaded(shard, tmp_path, caplog, picture, encode):
    sprung = tmp_path / "sprung"
    members = {f"{GOOD}.{name}": trap(sprung) for name in ("pyd", "pth", "pickle", "pt", "npy", "json", "txt", "html")}
    command = f"cos\nsystem\n(S'touch {sprung}'\ntR.".encode()
    members |= {"0002.jpg": trap(sprung), "0002.cls": b"0", "0003.png": encode(picture(8, 8)), "0003.cls": command[:64]}
    labels, unreadable, told, _ = shard(members, caplog)
    assert labels == [1] and unreadable == 2 and not sprung.exists()
    assert "0002: not an image" in told[0] and "0003: its .cls must be the number of a class, got " in told[1]


@pytest.mark.parametrize("name", ["../../0002", "/0002", "a/../../0002"])
def test_member_names_that_lead_out_are_reported_and_nothing_is_written(shard, tmp_path, caplog, picture, encode, name):
    before = {*tmp_path.rglob("*")}
    members = {f"{name}.png": encode(picture(8, 8)), f"{name}.cls": b"1"}
    labels, unreadable, told, _ = shard(members, caplog)
    made = {path.name for path in {*tmp_path.rglob("*")} - before}
    assert labels == [1] and unreadable == 1 and made == {"a", "evil-0.tar", "classes.txt"}
    assert f"{name}: the name of its .png leads out of the shard" in told[0]


def test_an_image_too_large_to_decode_is_reported(shard, caplog, encode):
    """A header of 10,000 x 10,000 pixels."""
    from PIL import Image

    data = bytearray(encode(Image.new("L", (1, 1)), "BMP"))
    data[18:26] = (10000).to_bytes(4, "little") * 2
    labels, unreadable, told, _ = shard({"0002.bmp": bytes(data), "0002.cls": b"1"}, caplog)
    assert labels == [1] and unreadable == 1 and "10000 x 10000 pixels, more than" in told[0]


def test_a_sparse_member_of_a_terabyte_is_reported_and_not_read(shard, tmp_path, caplog):
    """GNU's old format: a header of no data says that it is mostly a hole."""
    _, _, _, data = shard({}, caplog)
    header = tarfile.TarInfo("0002.jpg")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (2**33 - 1, 0)
    block[483:495] = b"%011o\0" % (2**33 - 1)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    path = tmp_path / "a" / "evil-0.tar"
    good = path.read_bytes()[: 4 * 512]
    path.write_bytes(good + bytes(block) + bytes(1024))
    data = build_dataset(
        "wds/evil", tmp_path / "a", "test", reading=Reading("evil-0.tar", "evil-0.tar", str(tmp_path / "classes.txt"))
    )
    assert len(data) == 2
    with pytest.raises(BadImage, match=r"0002: 8589934591 bytes of \.jpg, more than the 268435456 allowed"):
        list(make_loader(data, 8, 1, train=False))


@pytest.mark.parametrize(
    "members, reason",
    [
        ({"0002.cls": b"1"}, "it has no image"),
        ({"0002.txt": b"1"}, "it has no image"),
        ({"0002.png": b""}, "it has no .cls"),
        ({"0002.png": b"", "0002.cls": b"-1"}, r".cls must be the number of a class, got b'-1'"),
        ({"0002.png": b"", "0002.cls": b"1" * 65}, "65 bytes of .cls, more than the 64 allowed"),
        ({"0002.png": b"", "0002.PNG": b"", "0002.cls": b"1"}, "it has two members .png"),
        ({"0002.png": b"", "0002.cls": b"1"}, "not an image"),
    ],
)
def test_samples_that_are_none_are_reported_by_name_and_counted(shard, caplog, members, reason):
    labels, unreadable, told, data = shard(members, caplog)
    assert labels == [1] and unreadable == 1 and len(data) == 2
    assert len(told) == 1 and "evil-0.tar: 0002: " in told[0] and reason in told[0]


def test_links_hidden_files_and_what_webdataset_keeps_for_itself_are_no_samples(shard, tmp_path, caplog):
    _, _, _, data = shard(
        {"._0002.png": b"", "a/._0002.png": b"", "__meta__/0002.png": b"", "__index__.json": b"", "nothing": b""},
        caplog,
    )
    assert len(data) == 1
    path = tmp_path / "a" / "evil-0.tar"
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("0002.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert labels_of(make_loader(data, 8, 1, train=False)) == [1]


@pytest.mark.parametrize("name", ["a/b.c/0001.x.PNG", "0001.png", "a.b/c", "0001", "a/b/0001.cls", "a.b/0001.jpg"])
def test_names_are_split_as_webdataset_splits_them(name):
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")
    from webdataset.tariterators import base_plus_ext

    base, extension = base_plus_ext(name)
    stem, found = split_name(name)
    assert (stem, found) == (base, extension.lower()) if base else not (stem and found)


def test_a_name_of_a_megabyte_takes_no_longer_than_reading_it(shard, caplog):
    labels, unreadable, told, _ = shard({"a/" * 500_000 + "x": b"1", "a/" * 500_000 + "x.cls": b"1"}, caplog)
    assert labels == [1] and unreadable == 1 and len(told[0]) < 2000


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")
    (tmp_path / "names.txt").write_text("a")
    for content in (b"hello", b"", bytes(600), b"\xff" * 5000):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.tar|the shards hold no sample"):
            reading = Reading(train_split="x.tar", class_map=str(tmp_path / "names.txt"))
            build_dataset("wds/x", tmp_path, "train", reading=reading)


@pytest.mark.parametrize(
    "root", ["pipe:touch HERE", "ftp://host/x", "s3://bucket/x", "hf://x/y", "-", "gs://x", "file://elsewhere/x"]
)
def test_addresses_that_webdataset_would_run_or_fetch_otherwise_are_refused(root, tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"must be a folder or a URL of file, http or https, got "):
        build_dataset("wds/x", root, "train", reading=Reading(train_split="x.tar|1"))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/x.tar", "pipe:touch HERE #.tar", "a/../../x.tar", "x.tar.gz", 3, None]
)
def test_shards_that_an_info_puts_elsewhere_are_refused(write_shards, name):
    root = write_shards((2, 2))
    info = json.loads((root / "_info.json").read_text())
    info["splits"]["train"]["filenames"][1] = name
    (root / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"a shard must be a \.tar file below data\.root"):
        build_dataset("wds/x", root, "train")


@pytest.mark.parametrize(
    "change, error",
    [
        ({"shard_lengths": [2, 3]}, "must hold 4 samples together, as was said of them, and 2 of them hold 5"),
        ({"shard_lengths": [4]}, "must hold 4 samples together"),
        ({"shard_lengths": [2, "2"]}, "must be numbers"),
        ({"shard_lengths": [6, -2]}, "must be numbers"),
        ({"num_samples": "4"}, "must be numbers"),
        ({"filenames": 3}, "cannot be read from its info"),
        ({"filenames": ["train-000.tar", "gone.tar"]}, "no shard .*gone.tar"),
    ],
)
def test_an_info_that_does_not_fit_is_refused(write_shards, change, error):
    root = write_shards((2, 2))
    info = json.loads((root / "_info.json").read_text())
    info["splits"]["train"] |= change
    (root / "_info.json").write_text(json.dumps(info))
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        build_dataset("wds/x", root, "train")


def test_splits_are_found_by_name_or_by_a_pattern_of_shards_that_are_counted(write_shards, tmp_path):
    root = write_shards((3, 2), "validation")
    assert len(build_dataset("wds/x", root, "test")) == 5
    (tmp_path / "names.txt").write_text("\n".join("abcde"))
    for split, count in (("validation-{000..001}.tar", 5), ("validation-001.tar|2", 2)):
        reading = Reading(test_split=split, class_map=str(tmp_path / "names.txt"))
        (root / "_info.json").unlink(missing_ok=True)
        data = build_dataset("wds/x", root, "test", reading=reading)
        assert len(data) == count and data.classes == [*"abcde"]
    with pytest.raises(ValueError, match=r"must hold 7 samples together, as was said of them, and 1 of them hold 2"):
        build_dataset("wds/x", root, "test", reading=Reading(test_split="validation-001.tar|7"))
    with pytest.raises(ValueError, match=r"no split train for train, data\.train_split names it"):
        build_dataset("wds/x", root, "train")


def test_classes_are_those_of_the_info_or_of_a_class_map(write_shards, tmp_path):
    root = write_shards((3,))
    path = tmp_path / "names.txt"
    build = functools.partial(build_dataset, "wds/x", root, "train")
    path.write_text("0\n1\n2\n")
    assert build(reading=Reading(class_map=str(path))).classes == ["0", "1", "2"]
    for text, error in (
        ("0\n1\n3\n", "must name the same classes"),
        ("0\n0\n1\n", "each class once"),
        ("", "each class once"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=error):
            build(reading=Reading(class_map=str(path)))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        build(reading=Reading(class_map=str(path)))
    trapped = tmp_path / "names.pkl"
    trapped.write_bytes(trap(tmp_path / "sprung"))
    with pytest.raises(ValueError, match=r"must be a \.txt file"):
        build(reading=Reading(class_map=str(trapped)))
    with pytest.raises(FileNotFoundError, match="no file"):
        build(reading=Reading(class_map=str(tmp_path / "gone.txt")))
    info = json.loads((root / "_info.json").read_text())
    del info["classes"]
    (root / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"does not name its classes: data\.class_map must"):
        build()
    assert not (tmp_path / "sprung").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """serve(folder) -> its URL, from a thread on loopback."""
    servers = []
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def begin(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_urls_give_what_the_folder_gives(write_shards, serve, workers):
    root = write_shards((3, 4, 2))
    local = build_dataset("wds/x", root, "train")
    for address in (root.as_uri(), serve(root)):
        data = build_dataset("wds/x", address, "train")
        assert data.classes == local.classes and data.lengths == local.lengths
        for train in (True, False):
            one, other = (list(make_loader(each, 8, 2, train=train, workers=workers)) for each in (local, data))
            assert len(one) == len(other) > 0
            assert all(torch.equal(x, y) for pair in zip(one, other, strict=True) for x, y in zip(*pair, strict=True))


def test_a_shard_that_the_server_has_not_is_named_and_counted(write_shards, serve, caplog):
    root = write_shards((3, 4, 2))
    data = build_dataset("wds/x", serve(root), "train")
    (root / "train-001.tar").unlink()
    with caplog.at_level(logging.WARNING, logger="s4nd"):
        loader = make_loader(data, 8, 2, train=False, skip_bad=True)
        assert labels_of(loader) == [0, 1, 2, 7, 8] and loader.unreadable == 4
    (record,) = [record for record in caplog.records if record.name == "s4nd"]
    assert "train-001.tar: it ends after 0 of 4 samples: " in record.getMessage()
    with pytest.raises(ValueError, match=r"the samples of a shard cannot be counted: http.*gone\.tar"):
        build_dataset("wds/x", serve(root), "train", reading=Reading(train_split="gone.tar"))


def test_without_webdataset_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"s4nd\[wds\]"):
        build_dataset("wds/x", tmp_path, "train")


def test_real_photographs_in_shards_are_those_of_the_folder(shared, tmp_path, tar):
    """Of Imagenette, in the order of the folder."""
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")
    from s4nd.train.data.dataset import Subset

    folder = build_dataset("folder", shared / "data" / "imagefolder" / "imagenette", "test").dataset
    chosen = list(range(0, len(folder), 40))
    members = {}
    for i in chosen:
        path = folder.paths[i]
        members |= {f"{i:05d}.jpg": Path(path).read_bytes(), f"{i:05d}.cls": str(folder.labels[i]).encode()}
    tar(tmp_path / "val.tar", members)
    (tmp_path / "names.txt").write_text("\n".join(folder.classes))
    data = build_dataset(
        "wds/x", tmp_path, "test", reading=Reading(test_split="val.tar", class_map=str(tmp_path / "names.txt"))
    )
    one = make_loader(data, 48, 5, train=False)
    other = make_loader(Subset(folder, torch.tensor(chosen).numpy()), 48, 5, train=False)
    assert data.classes == folder.classes
    pairs = list(zip(one, other, strict=True))
    assert pairs and all(torch.equal(x, y) for pair in pairs for x, y in zip(*pair, strict=True))


def test_a_compressed_shard_is_not_opened(tmp_path):
    """It could swell."""
    pytest.importorskip("webdataset", reason="needs the extra: pip install 's4nd[wds]'")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.cls"))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"x\.tar: ReadError"):
        build_dataset("wds/x", tmp_path, "train", reading=Reading(train_split="x.tar"))
