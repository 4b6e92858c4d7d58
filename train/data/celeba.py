"""CelebA, faces with 40 attributes, in the layout of its official files (Liu et al. 2015, arXiv:1411.7766)."""

from collections.abc import Iterator
from pathlib import Path

from .attributes import AttributeImages, add_file, checked_attributes

ATTRIBUTES, PARTITION, IMAGES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
PARTITIONS = {"train": "0", "test": "2"}  # 1, the official validation partition, is in neither split
SIGNS = {"1": 1, "-1": 0}


class Celeba(AttributeImages):
    """One split of the aligned images, 178 x 218 pixels, of which the central square is seen as of every image.

    Training is the official partition 0, testing partition 2; partition 1 is not used. A folder may hold some of the images
    only, and lists of some of them. The two lists must be of the same images. The attributes are those of the list, in its
    order, with -1 for 0.

    Args:
        root: holds list_attr_celeba.txt, list_eval_partition.txt and img_align_celeba/.

    Raises:
        FileNotFoundError: one of them is absent, or none of the images of the split is there.
        ValueError: a list is not as it should be; names the file and the line.
    """

    def __init__(self, root: str | Path, split: str):
        root = Path(root)
        classes, labels = _read_attributes(root / ATTRIBUTES)
        partitions = _read_partitions(root / PARTITION)
        alone = sorted(labels.keys() ^ partitions.keys())
        if alone:
            only = ATTRIBUTES if alone[0] in labels else PARTITION
            raise ValueError(
                f"{root}: {ATTRIBUTES} and {PARTITION} must list the same images, got {len(alone)} that are in one of them "
                f"only, such as {alone[0]} in {only}"
            )
        files = [file for file in labels if partitions[file] == PARTITIONS[split]]
        super().__init__(root / IMAGES, root / PARTITION, classes, files, [labels[file] for file in files])


def _read_attributes(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """The names of the attributes, and 0 or 1 for each by image: a line with the number of images, one of names, the images."""
    rows = lines(path)
    where, count = next(rows, (f"{path}: line 1", []))
    if len(count) != 1 or not count[0].isdecimal() or len(count[0]) > 9:
        raise ValueError(f"{where} must be the number of images, got {' '.join(count)[:80]!r}")
    where, names = next(rows, (f"{path}: line 2", []))
    classes = checked_attributes(names, where)
    seen: dict[str, str] = {}
    labels: dict[str, list[int]] = {}
    for where, (file, *values) in rows:
        add_file(file, where, seen, folders=False)
        if len(values) != len(classes):
            raise ValueError(f"{where} must have {len(classes)} values after the file, got {len(values)}")
        odd = {*values} - SIGNS.keys()
        if odd:
            raise ValueError(f"{where}: values must be -1 or 1, got {min(odd)[:80]!r}")
        labels[file] = [SIGNS[value] for value in values]
    if int(count[0]) != len(labels):
        raise ValueError(f"{path}: line 1 says that there are {count[0]} images, and {len(labels)} are listed")
    return classes, labels


def _read_partitions(path: Path) -> dict[str, str]:
    """That of each image, 0, 1 or 2."""
    seen: dict[str, str] = {}
    partitions: dict[str, str] = {}
    for where, (file, *partition) in lines(path):
        add_file(file, where, seen, folders=False)
        if partition not in (["0"], ["1"], ["2"]):
            raise ValueError(f"{where} must be FILE and 0, 1 or 2, got {' '.join([file, *partition])[:80]!r}")
        partitions[file] = partition[0]
    return partitions


def lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where a line is (file and number), and its words; empty lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text.
    """
    if not path.is_file():
        needed = f"{ATTRIBUTES}, {PARTITION} and {IMAGES}/"
        raise FileNotFoundError(f"celeba needs a folder with {needed}, and {path} is not there")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if words := line.split():
            yield f"{path}: line {number}", words
