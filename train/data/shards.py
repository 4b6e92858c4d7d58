"""WebDataset shards, tar files in which the files of a sample stand together: KEY.jpg and KEY.cls, the number of its class.

Shards come from outside. No member is written to disk, none but images and class numbers are read, nothing is unpickled, and an
address is a path or a URL of http, never one of webdataset's commands (pipe:).
"""

import tarfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from .folder import Folder
from .images import BadImage
from .readers import Reading
from .streams import Sample, Stream, Truncated

IMAGES = tuple(extension[1:] for extension in Folder.extensions)
LABEL = "cls"
MAX_BYTES = {
    **dict.fromkeys(IMAGES, 2**28),
    LABEL: 64,
}  # of a member; a sparse one is small in the file and gigabytes in memory
REMOTE = ("http", "https")


class Shards(Stream):
    """One split, as timm's ReaderWds finds it: by `_info.json` beside the shards, which lists the splits with their
    filenames and shard_lengths, and may name the classes; or by a pattern of shards, whose samples are counted.

    Args:
        root: folder of the shards, a path or a URL (file, http, https).

    Raises:
        ImportError: webdataset is not installed.
        FileNotFoundError: a shard is not there.
        ValueError: another address, no such split, names that lead out of the root, or numbers that do not fit together.
    """

    def __init__(self, root: str | Path, split: str, reading: Reading):
        _require_webdataset()
        root = _check_root(str(root))
        info, found = reading.open(split, lambda name: _read_info(root, name))
        self.addresses = [f"{root}/{_check_name(name)}" for name in found.filenames]
        if "://" not in root:
            absent = [address for address in self.addresses if not Path(address).is_file()]
            if absent:
                raise FileNotFoundError(f"no shard {absent[0]}" + f", and {len(absent) - 1} more" * (len(absent) > 1))
        lengths = list(found.shard_lengths) or [_count_samples(address) for address in self.addresses]
        if len(lengths) != len(self.addresses) or (found.num_samples and sum(lengths) != found.num_samples):
            raise ValueError(
                f"{root}: the shards of {split} must hold {found.num_samples} samples together, as was said of them, and "
                f"{len(self.addresses)} of them hold {sum(lengths)}"
            )
        super().__init__(reading.classes(info.get("classes"), root), lengths, reading.shuffle)

    def where(self, shard: int) -> str:
        return self.addresses[shard]

    def samples(self, shard: int, wanted: Container[int]) -> Iterator[Sample | BadImage | None]:
        return _read_samples(self.addresses[shard], wanted)


def _require_webdataset() -> None:
    """ImportError names the extra that installs it."""
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise ImportError('wds/ data sets need webdataset: pip install "s4nd[wds]"') from error


def _check_root(root: str) -> str:
    """A folder's path or a URL, without the slash at its end; webdataset would run the command of a pipe:."""
    parts = urlparse(root)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        root = url2pathname(parts.path)
    elif (parts.scheme and parts.scheme not in REMOTE) or root == "-":
        raise ValueError(f"data.root of shards must be a folder or a URL of file, http or https, got {root[:80]!r}")
    return root.rstrip("/") or "/"


def _check_name(name: Any) -> str:
    """A shard's name, below the root."""
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or ":" in name or path.suffix != ".tar":
        raise ValueError(
            f"a shard must be a .tar file below data.root, without a scheme and '..', got {str(name)[:80]!r}"
        )
    return name


def _read_info(root: str, split: str) -> tuple[dict, Any]:
    """The content of _info.json (or {}), and timm's SplitInfo of a split.

    Raises:
        LookupError: there is no such split.
        ValueError: the file says something else than timm expects.
    """
    from timm.data.readers.reader_wds import ReaderWds

    try:
        reader = ReaderWds(root, split=split)
    except RuntimeError as error:
        raise LookupError(f"{root}: {error}") from error
    except Exception as error:  # timm takes the file at its word
        raise ValueError(f"{root}: the split {split} cannot be read from its info: {error!r}") from error
    lengths, names = reader.split_info.shard_lengths, reader.info.get("classes")
    if not all(type(length) is int and length >= 0 for length in (*lengths, reader.num_samples)):
        raise ValueError(f"{root}: shard_lengths and num_samples of {split} must be numbers, got {str(lengths)[:80]}")
    if not isinstance(names, list | None) or not all(isinstance(name, str) for name in names or []):
        raise ValueError(f"{root}: the classes of its info must be a list of names, got {str(names)[:80]}")
    return reader.info, reader.split_info


def _count_samples(address: str) -> int:
    """The samples of a shard, without reading them.

    Raises:
        ValueError: it cannot be read to its end.
    """
    count = 0
    for sample in _read_samples(address, ()):
        if isinstance(sample, Truncated):
            raise ValueError(f"the samples of a shard cannot be counted: {sample}")
        count += 1
    return count


def _read_samples(address: str, wanted: Container[int]) -> Iterator[Sample | BadImage | None]:
    """The samples of a tar file: members of one name up to its first dot, one after the other, as webdataset groups them,
    without hidden files.

    None stands for those that are not wanted. A shard that is damaged ends with a `Truncated`.
    """
    key, place = None, -1
    members: dict[str, Any] = {}
    try:
        with _opened_tar(address) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it is there, and would remember every header
                base, extension = split_name(member.name)
                if not (member.isreg() and base and extension) or _is_meta(member.name):
                    continue
                if base != key:
                    if key is not None:
                        yield _sample_of(f"{address}: {key[:200]}", members) if place in wanted else None
                    key, members, place = base, {}, place + 1
                if place in wanted:
                    _add_member(members, member, extension, partial(_content, tar, member))
            if key is not None:
                yield _sample_of(f"{address}: {key[:200]}", members) if place in wanted else None
    except (
        Exception
    ) as error:  # of damaged data tarfile raises ReadError, OSError, ValueError, RecursionError, and more
        yield Truncated(address, f"{type(error).__name__}: {error}")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


@contextmanager
def _opened_tar(address: str) -> Iterator[tarfile.TarFile]:
    """Not compressed: a small file could swell to gigabytes."""
    if urlparse(address).scheme not in REMOTE:
        with tarfile.open(address, "r:") as tar:
            yield tar
        return
    from webdataset.gopen import gopen

    with gopen(address) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        yield tar


def split_name(name: str) -> tuple[str, str]:
    """A member's name up to its first dot, folders and all, and what comes after, in lower case; ("", "") of a hidden file.

    Names may be megabytes long; webdataset's regular expression would take hours.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else ("", "")


def _is_meta(name: str) -> bool:
    """What webdataset takes for its own."""
    return name.startswith("__") and "__" in name[2:].partition("/")[0]


def _add_member(members: dict, member: tarfile.TarInfo, extension: str, read: Callable[[], bytes]) -> None:
    """Put the content of a member, or the reason why it is none, with the members of its sample, if it is of any use."""
    if extension not in MAX_BYTES:
        return
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        members[extension] = BadImage("", f"the name of its .{extension} leads out of the shard")
    elif member.size > MAX_BYTES[extension]:
        members[extension] = BadImage(
            "", f"{member.size} bytes of .{extension}, more than the {MAX_BYTES[extension]} allowed"
        )
    elif extension in members:
        members[extension] = BadImage("", f"it has two members .{extension}")
    else:
        members[extension] = read()


def _sample_of(path: str, members: dict) -> Sample | BadImage:
    """What the members of a sample make."""
    bad = [member for member in members.values() if isinstance(member, BadImage)]
    if bad:
        return BadImage(path, bad[0].reason)
    image = next((members[extension] for extension in IMAGES if extension in members), None)
    if image is None:
        return BadImage(path, f"it has no image (.{', .'.join(IMAGES)})")
    label = members.get(LABEL, b"").strip()
    if not label.isdigit():
        return BadImage(
            path, f"its .{LABEL} must be the number of a class, got {label[:20]!r}" if label else f"it has no .{LABEL}"
        )
    return Sample(image, int(label), path)
