"""Models of about one size that the benchmarks compare, S4ND's and timm's, and each of them in its memory layouts."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

import s4nd.models  # noqa: F401, registers the models

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Family:
    """Models of about one size: timm's name and arguments of each, by the label that it has in the tables."""

    models: dict[str, tuple[str, dict[str, Any]]]
    rival: str  # a label
    layouts: tuple[str, ...]
    side: int = 224  # of the images


def family(rival: str, layouts: tuple[str, ...], models: dict[str, dict[str, Any]], **shared: Any) -> Family:
    """A family from arguments by label, whose first word is timm's name; stochastic depth is alike in all."""
    arguments = {label: {"drop_path_rate": 0.1} | shared | own for label, own in models.items()}
    return Family({label: (label.split()[0], args) for label, args in arguments.items()}, rival, layouts)


def convnext(**shared: Any) -> Family:
    """ConvNeXt-T with S4ND layers, with its 7 x 7 and with 31 x 31 windows; InceptionNeXt's have bands of 11."""
    models = {
        "s4nd_convnext_tiny": {},
        "s4nd_convnext_tiny s4d": {"kernel": "s4d", "init": "lin"},
        "convnext_tiny": {},
        "convnext_tiny 31x31": {"kernel_sizes": 31},
        "inception_next_tiny": {},
    }
    return family("convnext_tiny", tuple(LAYOUTS), models, **shared)


def vit(others: tuple[str, ...], **shared: Any) -> Family:
    """ViT-B with S4ND layers and with attention, and others."""
    labels = ("s4nd_vit_base_patch16_224", "vit_base_patch16_224", *others)
    return family("vit_base_patch16_224", ("contiguous",), {label: {} for label in labels}, **shared)


ISO = replace(
    family("conv_iso_tiny", tuple(LAYOUTS), {"s4nd_iso_tiny": {}, "conv_iso_tiny": {}}, drop_path_rate=0.0), side=16
)


def build(family: Family) -> dict[str, nn.Module]:
    """Every model of a family in every layout, by row: label, layout."""
    models = {}
    for label, (name, arguments) in family.models.items():
        sized = {"img_size": family.side} if name.startswith("s4nd") else {}
        model = timm.create_model(name, **(sized | arguments))
        for layout in family.layouts:
            models[f"{label}, {layout}"] = copy.deepcopy(model).to(memory_format=LAYOUTS[layout])
    return models


def label(row: str) -> str:
    """What a row is, without its layout."""
    return row.split(", ")[0]


def signal(row: str, side: int, batch_size: int) -> Tensor:
    """Random images in the row's layout."""
    layout = LAYOUTS[row.split(", ")[1]]
    return torch.randn(batch_size, 3, side, side).contiguous(memory_format=layout)
