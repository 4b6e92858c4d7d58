"""What a model card says of a run, as Markdown: its recipe and its accuracies. Nothing of the machine that it ran on."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import yaml

from .about import of_weights
from .config import Config, StageConfig, config_to_dict
from .resolution import CURVES_FILE, read_curves
from .state import EXEMPT


def recipe(config: Config) -> str:
    """The names of data and model, the stages, the seed and the keys that are not at their defaults, as YAML for `s4nd train`.

    Left out is where a run reads its data, runs and writes; of a file at an absolute path the name is left.
    """
    tree, default = config_to_dict(config), config_to_dict(Config())
    stages = [
        {key: value for key, value in stage.items() if key in ("size", "epochs") or value != usual[key]}
        for stage in tree.pop("stages")
        for usual in [asdict(StageConfig())]
    ]
    kind, _, name = tree["data"]["name"].partition("/")  # of a reader; the name may be a path
    if PurePath(name).is_absolute():
        tree["data"]["name"] = f"{kind}/{PurePath(name).name}"
    del default["data"]["name"], default["model"]["name"]
    kept = {**_changed(tree, default), "stages": stages, "seed": config.seed}
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def _changed(tree: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in EXEMPT or (key in default and value == default[key]):
            continue
        if isinstance(value, dict):
            value = _changed(value, default.get(key, {}), f"{path}.")
        elif isinstance(value, str) and PurePath(value).is_absolute():
            value = PurePath(value).name
        kept[key] = value
    return kept


def accuracy_table(rows: Mapping[str, Mapping[int, float]], trained_size: int | None) -> str:
    """Accuracies (0 to 1) in percent, a column per size; the trained one says so.

    Args:
        rows: the name of each and its accuracy by size, in pixels per side.
    """
    sizes = sorted({size for row in rows.values() for size in row})
    head = ["", *(f"{size} (trained)" if size == trained_size else str(size) for size in sizes)]
    body = [[name, *(f"{100 * row[size]:.1f}" if size in row else "-" for size in sizes)] for name, row in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *body]).replace("|  |", "| |")


def known_rows(checkpoint: Path, trained_size: int, accuracy: float) -> dict[str, dict[int, float]]:
    """Accuracies by size that `s4nd eval` left beside a checkpoint, by the names of its rows.

    They may be of other weights, or of fewer images: only those count that name this file (older evaluations name none) and
    whose accuracy at the trained size is `accuracy`.

    Raises:
        ValueError: what lies there is damaged.
    """
    path = checkpoint.with_name(CURVES_FILE)
    curves = read_curves(path) if path.is_file() else []
    digest = of_weights(checkpoint)["sha256"]
    mine = [curve for curve in curves if curve.about is None or curve.about.get("sha256") == digest]
    same = [c for c in mine if c.trained_size == trained_size and c.accuracy.get(trained_size) is not None]
    return {c.name: dict(c.accuracy) for c in same if abs(c.accuracy[trained_size] - accuracy) < 1e-9}
