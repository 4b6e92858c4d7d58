"""What an evaluation was made of: which weights, on which data, and how. Figures stand in one table where the data agree."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from s4nd.nn.resolution import HOLD_DILATE, layers

from .data.dataset import ImageDataset
from .data.video_sets import VideoDataset


def of_weights(path: str | Path) -> dict[str, str]:
    """A checkpoint: the name of its file, its folder's before it, and the SHA-256 of its bytes.

    Ask before the file is loaded: of one that a training replaces meanwhile, the digest is then the old one, and what is
    measured counts as stale.
    """
    path = Path(path).resolve()
    return {"checkpoint": f"{path.parent.name}/{path.name}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def of_data(name: str, dataset: ImageDataset | VideoDataset) -> dict[str, Any]:
    """A data set: its name, the number of its images or videos, and a digest of the classes and of each one's label.

    The labels of a stream are not known before its images are read: its digest is of the classes alone.
    """
    labels = np.ascontiguousarray(dataset.labels).tobytes()
    digest = hashlib.sha256(json.dumps(list(dataset.classes)).encode() + labels)
    return {"data": name, "images": len(dataset), "labels": digest.hexdigest()[:16]}


def resample_of(model: nn.Module) -> str:
    """The resampling method of a model's S4ND layers, in the words of `s4nd eval --resample`.

    Of a model without such layers it is "continuous": what convolutions do at any size. Layers of different methods, other
    than "hold+dilate", are told by all of them.
    """
    first, *others = [set(layer.sampling.resample) for layer in layers(model)] or [{"continuous"}]
    rest = set().union(*others)
    if first == {"hold"} and rest == {"dilate"}:
        return HOLD_DILATE
    return ", ".join(sorted(first | rest))
