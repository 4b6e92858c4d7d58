"""A trained image model as a folder in the layout of the Hugging Face hub, which timm and transformers' TimmWrapper load.

    config.json        architecture, arguments, classes, size, mean and std, as timm writes them
    model.safetensors  the weights; what their layers were trained on is among them
    README.md          the model card

The state-space model itself, not its convolutions at one size: it runs at every size, wherever s4nd is installed.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from timm.models._hub import generate_readme
from torch import nn

from ..card import accuracy_table, known_rows, recipe
from ..checkpoint import Meta, load_model
from ..config import Config
from ..model import channels, normalisation
from ..task import TASKS

__all__ = ["export_hub"]

PROBLEM_TYPES = {"single-label": "single_label_classification", "multi-label": "multi_label_classification"}
# Of timm's cfg, what is said of other weights than the run's.
OF_OTHERS: tuple[str, ...]
OF_OTHERS = ("tag", "label_names", "label_descriptions", "license", "description", "origin_url", "paper_name")
OF_OTHERS += ("paper_ids", "notes", "test_input_size", "test_crop_pct", "test_pool_size")


def export_hub(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write the folder and load it once, for `timm.create_model("local-dir:FOLDER", pretrained=True)`; returns its path.

    Args:
        checkpoint: of `s4nd train`, of a model of images. A multi-label one says so to transformers alone (problem_type): timm
            gives logits.
        folder: new or empty; it is complete or not there.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; a model of videos, a folder that holds something or has no folder to lie
            in, or a model that does not come back as it was.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"the hub's folder must be new or empty, and {folder} is not: choose another one, or remove it"
        )
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {folder.parent} for {folder.name}")
    model, config, meta = load_model(checkpoint)
    if config.data.sampling() is not None:
        raise ValueError(
            f"the hub's layout is for models of images, {checkpoint} is of the videos of {config.data.name}"
        )
    if meta.task not in PROBLEM_TYPES:
        raise ValueError(
            f"the hub's layout is for {' and '.join(PROBLEM_TYPES)} models, {checkpoint} is of {meta.task}"
        )
    with TemporaryDirectory(prefix=".s4nd-", dir=folder.absolute().parent) as place:
        made = Path(place) / "hub"
        _write(made, model, config, meta)
        (made / "README.md").write_text(_card(folder.absolute().name, checkpoint, config, meta), encoding="utf-8")
        _check(made, model, config.stages[meta.stage].size)
        if folder.exists():
            folder.rmdir()  # Windows renames onto nothing
        os.rename(made, folder)
    return folder


def _write(folder: Path, model: Any, config: Config, meta: Meta) -> None:
    size = config.stages[meta.stage].size
    mean, std = normalisation(model)
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in OF_OTHERS}
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": meta.classes, "problem_type": PROBLEM_TYPES[meta.task]},
        data_config={
            "input_size": (channels(model), size, size),
            "mean": mean,
            "std": std,
            "crop_pct": config.data.crop_pct,
            "interpolation": config.data.interpolation,
        },
        safe_serialization=True,
    )
    path = folder / "config.json"
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    del tree["model_args"]["num_classes"]  # it stands above them, and TimmWrapper passes both
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(folder: Path, model: nn.Module, size: int) -> None:
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, channels(model), size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(again(x), model(x)):
            raise ValueError(
                f"timm's {type(again).__name__} of the folder gives other logits than the checkpoint's model"
            )


def _card(name: str, checkpoint: str | Path, config: Config, meta: Meta) -> str:
    trained, task = config.stages[meta.stage].size, TASKS[meta.task]
    grey = config.model.args.get("in_chans", 3) == 1
    usage = f"""
With s4nd installed:

```python
import timm, s4nd.models

model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # of a hub "hf-hub:OWNER/{name}"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

or, after `import s4nd.models`, `transformers.AutoModelForImageClassification.from_pretrained("{name}")`.
"""
    answer = "each logit is of a sigmoid" if meta.task == "multi-label" else "the logits are of a softmax"
    model_card = {
        "license": "unknown",
        "description": f"{config.model.name}, trained on {config.data.name.partition('/')[0]} at {trained} x {trained} "
        f"pixels{', of grey images (PIL mode L)' if grey else ''}; {len(meta.classes)} classes, {answer}. It takes images of "
        "any size that its layers can.",
        "usage": usage,
    }
    of = "the validation split of the training images" if meta.split == "validation" else "the test split"
    chosen = f"; it chose these weights among the epochs, which flatters them on {of}" if meta.best else ""
    rows = known_rows(Path(checkpoint), trained, meta.accuracy)
    sizes = f"\nIn %, by pixels per side:\n\n{accuracy_table(rows, trained)}" if rows else ""
    figure = f"{task.metric.name.capitalize()} {task.metric.show(meta.accuracy)}"
    return f"""{generate_readme(model_card, name)}
## Accuracy

{figure} at {trained} x {trained}, on {of}, after epoch {meta.epoch}{chosen}.
{sizes}
## Training

```yaml
{recipe(config)}```
"""
