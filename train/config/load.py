"""A config from one YAML file and `key=value` overrides, strictly.

Every key is known, every value has its type and range, or the error names the file, the key and the nearest known key.
The same door is used for the config inside a checkpoint.
"""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .checks import problems
from .schema import Config, StageConfig
from .text import check_depth, check_text, read_text

FREE = ("model.args", "optim.args")  # mappings whose keys are those of a model or an optimizer


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Config from a YAML file and overrides such as `optim.lr=0.01`, `stages.0.size=32` or `model.args.depth=4`.

    A file may begin with `base: OTHER.yaml`: then it holds only what differs from that file. A base is named from the folder of
    the file, `..` and absolute paths included: whoever starts a training may read what they can read, and nothing but a config
    is taken from it. Lists, such as the stages, are replaced as a whole.

    Raises:
        FileNotFoundError: no such file, or no such base.
        KeyError: an unknown key; the message names the nearest known one.
        ValueError: not YAML, more than plain values (see text.py), a wrong type or a value out of range.
    """
    node = OmegaConf.structured(Config)
    for file, tree in _with_bases(Path(path)):
        _fill(node, "", tree, str(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"an override must be key=value, got {override!r}")
        source = f"override {_shorten(override)!r}"
        try:
            container: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={check_text(text, source)}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"{source}: not valid YAML: {error}") from None
        _set(node, key, container["value"], source)
    return _finish(node, str(path))


def _with_bases(path: Path | None) -> list[tuple[Path, Any]]:
    """The trees of a file and of the files it is based on, the first one first."""
    found: list[tuple[Path, Any]] = []
    while path is not None:
        if path.resolve() in [file.resolve() for file, _ in found]:
            raise ValueError(f"{path}: its bases are based on each other: {', '.join(str(file) for file, _ in found)}")
        if not path.is_file():
            raise FileNotFoundError(f"no config file {path}" + (f", the base of {found[-1][0]}" if found else ""))
        try:
            tree = OmegaConf.to_container(OmegaConf.create(check_text(read_text(path), str(path)) or "{}"))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from None
        base = tree.pop("base", None) if isinstance(tree, dict) else None
        if base is not None and not isinstance(base, str):
            raise ValueError(f"{path}: base must be the name of a file beside it, got {base!r}")
        found.append((path, tree))
        path = None if base is None else path.parent / base
    return found[::-1]


def config_from_dict(tree: Any, source: str) -> Config:
    """Config from plain containers of elsewhere (a checkpoint), through the same checks; `source` is for errors."""
    check_depth(tree, source)
    if "${" in str(tree):  # a stored config is resolved; an interpolation could only read this machine's environment
        raise ValueError(f"{source}: interpolations are not allowed in a stored config")
    node = OmegaConf.structured(Config)
    _fill(node, "", tree, source)
    return _finish(node, source)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain containers, the inverse of `config_from_dict`."""
    return asdict(config)


def _finish(node: DictConfig, source: str) -> Config:
    try:
        config: Any = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # an interpolation that cannot be resolved
        raise ValueError(f"{source}: {_first_line(error)}") from None
    for problem in problems(config):
        raise ValueError(f"{source}: {problem}")
    kind, _, name = config.data.name.partition("/")  # of a reader; the name may be a path
    config.out = config.out or "/".join(["runs", kind, *([PurePath(name).name] if name else []), config.model.name])
    return config


def _fill(node: DictConfig, prefix: str, tree: Any, source: str) -> None:
    if not isinstance(tree, dict):
        raise ValueError(
            f"{source}: {prefix or 'the config'} must be a mapping of keys to values, got {_shorten(repr(tree))}"
        )
    for key, value in tree.items():
        _set(node, f"{prefix}.{key}" if prefix else str(key), value, source)


def _set(node: DictConfig, path: str, value: Any, source: str) -> None:
    """Set one key, however deep; mappings are entered so that every error knows its whole path."""
    known = _resolve(path, source, node)
    if known is not None:
        _fill(node, path, value, source)
    elif path == "stages" and isinstance(value, list):
        node.stages = [StageConfig() for _ in value]
        for i, stage in enumerate(value):
            _fill(node, f"stages.{i}", stage, source)
    elif path in FREE and isinstance(value, dict):
        for key, item in value.items():
            OmegaConf.update(node, path, {str(key): item}, force_add=True)
    else:
        try:
            OmegaConf.update(node, path, value, force_add=path.startswith(tuple(f"{free}." for free in FREE)))
        except (OmegaConfBaseException, TypeError) as error:
            raise ValueError(f"{source}: {path}: {_first_line(error)}") from None


def _resolve(path: str, source: str, node: DictConfig) -> type | None:
    """The dataclass that stands at a dotted path, None for a value; KeyError if there is nothing of that name."""
    here: Any = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if ".".join(parts[:depth]) in FREE:
            return None
        if parts[:depth] == ["stages"]:
            if not part.isdigit() or int(part) >= len(node.stages):
                raise KeyError(f"{source}: {path} is unknown: there are {len(node.stages)} stages, counted from 0")
            here = StageConfig
            continue
        types = {f.name: f.type for f in fields(here)} if is_dataclass(here) else {}
        if part not in types:
            nearest = difflib.get_close_matches(part, types, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(types) or 'nothing'}"
            raise KeyError(f"{source}: {path} is unknown; {hint}")
        here = types[part]
    return here if isinstance(here, type) and is_dataclass(here) else None


def _first_line(error: Exception) -> str:
    return _shorten(str(error).splitlines()[0], 300)


def _shorten(text: str, shown: int = 120) -> str:
    """What a message says of a value that may be of any length."""
    return text if len(text) <= shown else f"{text[:shown]}..."
