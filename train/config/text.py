"""YAML of a config as plain text: mappings, lists and values, each key once; what could run code or grow is refused.

It is looked through before anything is made of it: objects (tags), repetitions by reference (aliases), of which a few lines can
stand for billions of values, deep nesting and large files are errors, and so is a key that is there twice, of which YAML takes
the last.
"""

from pathlib import Path

import yaml

MAX_BYTES = 2**20
MAX_DEPTH = 32  # of mappings and lists within each other; a config needs 4


def read_text(path: Path) -> str:
    """Of a config's file.

    Raises:
        ValueError: larger than 1 MiB, or not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: a config must be at most {MAX_BYTES} bytes long")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None


def check_text(text: str, source: str) -> str:
    """The text itself, if it holds nothing but plain values, each key once; `source` is for errors.

    Raises:
        ValueError: it does not; names the line.
        yaml.YAMLError: it is no YAML.
    """
    paths: set[str] = set()
    levels: list[_Level] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{source}: line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{where}: the alias *{event.anchor} is refused: write out what it stands for")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{where}: the tag {event.tag} is refused: a config holds plain values only")
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        path = levels[-1].enter(event, where) if levels else ""
        if path is None:  # of a key
            path = levels[-1].path
            if path in paths:
                raise ValueError(f"{where}: {path} is there twice")
            paths.add(path)
        elif is_mapping or isinstance(event, yaml.SequenceStartEvent):
            levels.append(_Level(path, is_mapping))
            if len(levels) > MAX_DEPTH:
                raise ValueError(f"{where}: more than {MAX_DEPTH} mappings and lists within each other")
    return text


class _Level:
    """A mapping or a list that is being read, at a dotted path."""

    def __init__(self, prefix: str, is_mapping: bool):
        self.prefix, self.is_mapping, self.count, self.path = prefix, is_mapping, 0, prefix

    def enter(self, event: yaml.NodeEvent, where: str) -> str | None:
        """The path of a value; None for a key, whose path becomes `self.path`."""
        index, is_key = self.count, self.is_mapping and self.count % 2 == 0
        self.count += 1
        if self.is_mapping and not is_key:
            return self.path
        if is_key and not isinstance(event, yaml.ScalarEvent):
            raise ValueError(f"{where}: a key must be a plain word")
        self.path = f"{self.prefix}.{event.value if is_key else index}".lstrip(".")
        return None if is_key else self.path


def check_depth(tree: object, source: str) -> None:
    """Of containers of elsewhere, without recursion.

    Raises:
        ValueError: more than MAX_DEPTH within each other.
    """
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"{source}: more than {MAX_DEPTH} mappings and lists within each other")


def _children(node: object) -> list:
    return [*node.values()] if isinstance(node, dict) else [*node] if isinstance(node, list | tuple) else []
