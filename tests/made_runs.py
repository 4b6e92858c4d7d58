"""Run folders made up in milliseconds: the checkpoint of a model as drawn, a log, and figures that nobody measured."""

from pathlib import Path
from typing import Any

import torch

from s4nd.train.about import of_weights
from s4nd.train.checkpoint import Meta, save_checkpoint
from s4nd.train.config import config_from_dict, load_config
from s4nd.train.model import build_model
from s4nd.train.resolution import Curve, read_curves, save_curves

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["model.args.embed_dim=4", "model.args.depth=1", "stages.0.epochs=2", "stages.0.size=8"]
DATA = {"data": "photos", "images": 700, "labels": "ab12", "skip_bad": False, "frames": None, "metric": "accuracy"}
AT_8_AND_16 = {8: 0.5, 16: 0.25}


def make_run(
    folder: Path,
    *overrides: str,
    model: str = "s4nd_iso_tiny",
    seed: int = 0,
    evaluated: dict[int, float] | None = AT_8_AND_16,
    epoch: int = 2,
    **about,
) -> Path:
    """A run of half an hour, with an accuracy of a half at 8 x 8, and its evaluation; returns the folder."""
    folder.mkdir()
    write_weights(folder, *overrides, f"seed={seed}", model=model, epoch=epoch)
    (folder / "log.jsonl").write_text("".join(f'{{"epoch": {i}, "seconds": 900}}\n' for i in (1, 2)))
    if evaluated is not None:
        evaluate(folder, evaluated, **about)
    return folder


def write_weights(folder: Path, *overrides: str, model: str = "s4nd_iso_tiny", epoch: int = 2, weights="model") -> None:
    config = load_config(ROOT / f"configs/photos/{model}.yaml", [*SMALL, f"out={folder}", *overrides])
    meta = Meta(epoch=epoch, stage=0, accuracy=0.5, classes=["a", "b"], weights=weights)
    save_checkpoint(folder / "last.safetensors", build_model(config, 2).state_dict(), config, meta)


def write_checkpoint(
    path: Path,
    name: str,
    args: dict[str, Any],
    size: int,
    classes: list[str],
    *,
    data: dict[str, Any] | None = None,
    stage: dict[str, Any] | None = None,
    state: dict[str, torch.Tensor] | None = None,
    **about,
) -> Path:
    """The checkpoint of any model, as drawn or with this state; returns its path. `about` goes to its Meta."""
    torch.manual_seed(0)
    tree = {"model": {"name": name, "args": args}, "stages": [{"size": size, **(stage or {})}], "data": data or {}}
    config = config_from_dict(tree, "the test")
    path.parent.mkdir(exist_ok=True)
    meta = Meta(**{**dict(epoch=3, stage=0, accuracy=0.625, classes=classes, weights="model"), **about})
    save_checkpoint(path, state or build_model(config, len(meta.classes)).state_dict(), config, meta)
    return path


def evaluate(
    folder: Path,
    accuracy: dict[int, float],
    resample: str = "hold",
    control: bool = False,
    of: Path | None = None,
    **about,
) -> None:
    """Add a curve to what was evaluated in this folder, by default of its own present weights."""
    path = folder / "resolution.json"
    curves = read_curves(path) if path.is_file() else []
    weights = of_weights((of or folder) / "last.safetensors")
    about = {**weights, "epoch": 2, "resample": resample, "control": control, **DATA, **about}
    save_curves([*curves, Curve(f"{folder.name}, {resample}", 8, accuracy, about=about)], path)


def cells(table: str) -> list[list[str]]:
    """Of a table in Markdown, without the line below its head."""
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|") and "---" not in line]
