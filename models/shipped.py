"""Weights that ship with the package, as timm's pretrained tags: weights/MODEL.TAG.safetensors, its card beside it.

A file says in its metadata what timm is to know of it, in the words of `s4nd export`; tools/ship_weights.py makes both.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

WEIGHTS = Path(__file__).with_name("weights")


def shipped_tags() -> list[str]:
    """The names for `timm.create_model(NAME, pretrained=True)`, such as "s4nd_iso_tiny.cifar10"."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def shipped_file(name: str) -> Path:
    """The safetensors file of a shipped tag; KeyError if there is none."""
    if name not in shipped_tags():
        raise KeyError(f"no weights named {name!r} ship with s4nd; it has {', '.join(shipped_tags())}")
    return WEIGHTS / f"{name}.safetensors"


def shipped_cfg(name: str) -> dict[str, Any]:
    """What timm's cfg of a shipped tag says of its weights: where they are, and what they were trained on."""
    path = shipped_file(name)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    size, mean, std, classes = (json.loads(about[key]) for key in ("size", "mean", "std", "classes"))
    return {
        "file": str(path),
        "input_size": (len(mean), *size),
        "pool_size": tuple(size),
        "num_classes": len(classes),
        "label_names": tuple(classes),
        "mean": tuple(mean),
        "std": tuple(std),
        "crop_pct": json.loads(about["crop_pct"]),
        "interpolation": about["interpolation"],
        "license": about["license"].lower(),
    }
