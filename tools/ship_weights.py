"""Weights that ship with the package, from a run: models/weights/TAG.safetensors and its card TAG.md.

    python tools/ship_weights.py runs/cifar10/s4nd_iso_tiny s4nd_iso_tiny.cifar10 --root DIR

takes last.safetensors of the run (the averaged weights where it averages) and evaluates it on the whole test set at every size,
by the model's own method and by its control; sizes that `s4nd eval --resample METHOD --control` has left in resolution.json
of the run are taken from there. On the first images that `--limit` takes, tests hold the card to its word. The file is a bare
state dict in float32, whose metadata say what files of `s4nd export` say. `--resample` sets the way to other sizes, on which a
training at one size does not depend. A new tag wants a line in the default_cfgs of its model, and an entry in ABOUT.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from s4nd import set_resample
from s4nd.nn.resolution import MODEL_RESAMPLE
from s4nd.train import about
from s4nd.train.card import accuracy_table, known_rows, recipe
from s4nd.train.checkpoint import Meta, load_model, read_tensors
from s4nd.train.commands.export import described
from s4nd.train.config import Config
from s4nd.train.data import build_dataset
from s4nd.train.files import write_atomically
from s4nd.train.model import normalisation
from s4nd.train.resolution import evaluate_sizes

FOLDER = Path(__file__).resolve().parents[1] / "models" / "weights"
LICENSE = "Apache-2.0"
METHODS = {
    "continuous": "continuous",
    "hold": "held",
    "dilate": "dilated",
    "fold": "folded",
    "hold+dilate": "first layer held, the rest dilated",
}


@dataclass(frozen=True)
class About:
    """What a card says of the data, and of what a model of them is not good for."""

    data: str
    limits: str


ABOUT = {
    "cifar10": About(
        "CIFAR-10 (Krizhevsky 2009), 50,000 images for training and 10,000 for testing, as JPEG in parquet files, whose "
        "pixels differ slightly from the original ones. The data set names no licence.",
        "It knows ten classes and answers with one of them whatever it sees. CIFAR-10's images are small, centred photographs "
        "of single things: other photographs want to be cropped likewise. Sizes below the trained one cost accuracy, as the "
        "table says. The way to other sizes was chosen on these test images, with another run.",
    ),
    "photos": About(
        "Grey crops of 14 photographs that ship with scikit-image, a class each, 200 of each for training and 50 for testing, "
        "which share no pixel (`data.name=photos`).",
        "It tells from which of these 14 photographs a crop was cut, and nothing else: it is an example of texture and form at "
        "many resolutions, not a classifier of things. Its input is grey, in three equal channels. The bandlimit of the "
        "training and the way to other sizes were chosen on these test images.",
    ),
}


@dataclass(frozen=True)
class Found:
    """Accuracy (0 to 1) by size of the model and of its control, and the right answers of the first `limit` images."""

    images: int
    accuracy: dict[int, float]
    control: dict[int, float]
    limit: int
    right: dict[int, int]


def method_of(model: nn.Module) -> str:
    """Which of MODEL_RESAMPLE the layers go; ValueError if each its own."""
    method = about.resample_of(model)
    if method not in MODEL_RESAMPLE:
        raise ValueError(f"the layers go to other sizes each by its own method, {method}: choose one with --resample")
    return method


def measure(
    model: nn.Module, config: Config, meta: Meta, run: Path, root: str | None, sizes: Sequence[int], limit: int
) -> Found:
    """Evaluate on the test split of the run's data, whose classes must be the run's."""
    data, trained = config.data, config.stages[meta.stage].size
    where = data.name, root or data.root, "test"
    whole, part = (build_dataset(*where, limit=n, reading=data.reading()) for n in (None, limit))
    if list(whole.classes) != meta.classes:
        raise ValueError(f"the run's classes are {meta.classes}, those of {data.name} are {list(whole.classes)}")
    sizes, settings = sorted({*sizes, trained}), {"transforms": data.transforms(), "batch_size": 32}
    few = evaluate_sizes(model, part, [trained, 2 * trained], **settings)
    home = evaluate_sizes(model, whole, [trained], **settings)
    found, known = [], known_rows(run / "last.safetensors", trained, home[trained])
    for name, control in ((method_of(model), None), ("control", trained)):
        rows = [row for key, row in known.items() if key.endswith(f", {name}")]
        row = {**(rows[0] if len(rows) == 1 else {}), **home}
        row |= evaluate_sizes(model, whole, [n for n in sizes if n not in row], control=control, **settings)
        found.append({n: row[n] for n in sizes})
    return Found(len(whole), *found, len(part), {n: round(x * len(part)) for n, x in few.items()})


def check_loads(content: bytes, path: Path, name: str, model: nn.Module, config: Config, meta: Meta) -> None:
    """timm's own way to a file must give the run's logits, at the trained size and another, from a model built for neither."""
    path.write_bytes(content)
    size, args = config.stages[meta.stage].size, {"num_classes": len(meta.classes), "in_chans": model.in_chans}
    loaded = timm.create_model(name, checkpoint_path=path, img_size=size + 1, **args).eval()
    for n in (size, 2 * size):
        x = torch.randn(2, model.in_chans, n, n, generator=torch.Generator().manual_seed(0))
        if not torch.equal(loaded(x), model(x)):
            raise ValueError(f"timm's {name} answers otherwise than the run, with model.args {config.model.args}")


def card(tag: str, model: nn.Module, config: Config, meta: Meta, found: Found, digest: str, commands: str) -> str:
    """The text of TAG.md."""
    about, trained = ABOUT[tag.partition(".")[2]], config.stages[meta.stage].size
    (mean, std), method = normalisation(model), method_of(model)
    rows = {f"{METHODS[method]} (`{method}`)": found.accuracy, f"control: resized to {trained}": found.control}
    averaged = "the averaged weights " if meta.weights == "ema" else ""
    right = "".join(f"| {size} | {number} |\n" for size, number in found.right.items())
    return f"""# {tag}

```python
import timm, s4nd.models

model = timm.create_model("{tag}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

Trained at {trained} x {trained} pixels; takes any size. The input is RGB in [0, 1], less the mean {mean},
divided by the std {std}.
Classes, in the order of the logits: {", ".join(meta.classes)}.

## Accuracy

In %, on all {found.images:,} test images, by pixels per side:

{accuracy_table(rows, trained)}
The control is the same model on the same images, rendered at each size and resized to the trained one. Right answers among the
{found.limit} images that `--limit {found.limit}` of `s4nd eval` takes:

| pixels per side | right of {found.limit} |
| --- | --- |
{right}
## Training

{about.data}

One run, {averaged}after the last epoch, number {meta.epoch}; seed {config.seed}. Its config:

```yaml
{recipe(config)}```

```sh
{commands}
```

## Limits

{about.limits} It is one run of one seed.

## Licence

{LICENSE}, as the code. sha256 of the file: {digest}
"""


def ship(
    run: str | Path,
    tag: str,
    root: str | None = None,
    resample: str | None = None,
    sizes: Sequence[int] = (8, 12, 16, 24, 32),
    limit: int = 300,
    folder: Path = FOLDER,
) -> Path:
    """Write the weights and the card of a tag; returns the path of the weights.

    Raises:
        FileNotFoundError, ValueError: no such run, one of another model, of videos or several labels, of half precision, or
            of arguments that timm's model has not.
    """
    name, _, data = tag.partition(".")
    if data not in ABOUT:
        raise ValueError(f"ABOUT must say what the data of the tag are; it knows {', '.join(ABOUT)}, got {data!r}")
    checkpoint = Path(run) / "last.safetensors"
    model, config, meta = load_model(checkpoint)
    if config.model.name.partition(".")[0] != name:
        raise ValueError(f"the tag is of {name}, the run of {config.model.name}")
    if meta.task != "single-label" or config.data.sampling() is not None:
        raise ValueError(f"a tag is for images of one label each, the run is {meta.task}, of {config.data.name}")
    odd = sorted(
        {str(t.dtype) for t in read_tensors(checkpoint)[0].values() if t.is_floating_point()} - {"torch.float32"}
    )
    if odd:
        raise ValueError(f"weights must be float32, got {', '.join(odd)}")
    if resample is not None:
        set_resample(model, resample)
    method, size = method_of(model), config.stages[meta.stage].size
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    metadata = {**described(model, config, meta, (size, size)), "model": name, "license": LICENSE}
    content = to_safetensors(tensors, metadata=metadata)
    with TemporaryDirectory() as place:
        check_loads(content, Path(place) / "model.safetensors", name, model, config, meta)
    found = measure(model, config, meta, checkpoint.parent, root, sizes, limit)
    path = Path(folder) / f"{tag}.safetensors"
    write_atomically(path, content)
    place = "DIR" if root or config.data.root else None
    training = f"s4nd train CONFIG.yaml{f' data.root={place}' if place else ''} out=RUN"
    options = (
        f"{f' --root {place}' if place else ''} --resample {method} --sizes {' '.join(map(str, sizes))} --limit {limit}"
    )
    commands = f"{training}\npython tools/ship_weights.py RUN {tag}{options}"
    text = card(tag, model, config, meta, found, hashlib.sha256(content).hexdigest(), commands)
    write_atomically(path.with_suffix(".md"), text.encode())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="its directory, such as runs/photos/s4nd_iso_tiny")
    parser.add_argument("tag", help="such as s4nd_iso_tiny.photos")
    parser.add_argument("--root", help="folder of the data; default: the run's")
    parser.add_argument(
        "--resample", choices=MODEL_RESAMPLE, help="resampling method at other sizes; default: the run's"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 12, 16, 24, 32], help="pixels per side")
    parser.add_argument("--limit", type=int, default=300, help="test images whose right answers the card counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(ship(args.run, args.tag, args.root, args.resample, args.sizes, args.limit))


if __name__ == "__main__":
    main()
