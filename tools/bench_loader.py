"""Images per second of the loader of training against timm's own, with the same transforms, files and workers.

    python tools/bench_loader.py --data data/imagenette
    python tools/bench_loader.py --data data/imagenette --only recipe --workers 2 --rounds 9 --out runs/bench_loader

Both read ROOT/train/<class>/*, decode, augment and give batches of normalised float32 images; timm's without its prefetcher,
which is for GPUs. They take turns, one epoch a round, after a round that is not counted: the ratio is the median over the
rounds of the two epochs of a round; above 1 ours is faster. The workers of both stay from epoch to epoch.
Prints a Markdown table, and writes OUT.json and OUT.png.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from bench_report import RATIO, Table, figure, markdown
from matplotlib.figure import Figure
from timm.data import create_dataset, create_loader
from timm.data.auto_augment import RandAugment

from s4nd.train.data import ImageTransforms, Rendering, make_loader
from s4nd.train.data.dataset import Subset
from s4nd.train.data.folder import Folder
from s4nd.train.data.policy import repair
from s4nd.train.model import to_input

TARGET = 0.9  # of timm's images/s, at least
POLICY = "rand-m9-mstd0.5-inc1"
CROPS = {"crop_scale": (0.08, 1.0), "interpolation": "bicubic"}
SECTIONS: dict[str, ImageTransforms | None] = {  # of ours; None: evaluation
    "crops": ImageTransforms(**CROPS),
    "recipe": ImageTransforms(**CROPS, auto_augment=POLICY, reprob=0.25),
    "evaluation": None,
}
EVALUATION = ImageTransforms(crop_pct=0.875, interpolation="bicubic")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    data: Path
    rounds: int = 5
    batch_size: int = 64
    size: int = 64
    images: int = 1024  # at most, evenly spaced in the folder
    workers: int = 1


def ours(section: str, settings: Settings) -> Callable[[], Iterable]:
    """As in training, with batches normalised for a model."""
    folder, transforms = Folder(settings.data, "train"), SECTIONS[section]
    dataset = Subset(folder, chosen(len(folder), settings.images))
    model, cpu = timm.create_model("resnet18"), torch.device("cpu")
    rendering = Rendering(hflip=True, transforms=transforms or EVALUATION)
    options = {"workers": settings.workers, "rendering": rendering, "train": transforms is not None}
    loader = make_loader(dataset, settings.size, settings.batch_size, **options)

    def epoch() -> Iterable:
        loader.set_epoch(next(epochs))
        return ((to_input(images, model, cpu), labels) for images, labels in loader)

    epochs = iter(range(10**9))
    return epoch


def timms(section: str, settings: Settings) -> Callable[[], Iterable]:
    """timm's loader of the same files."""
    dataset, transforms = create_dataset("folder", str(settings.data), split="train"), SECTIONS[section]
    samples = sorted(dataset.reader.samples)
    dataset.reader.samples = [samples[i] for i in chosen(len(samples), settings.images)]
    training = transforms is not None
    policy = {"auto_augment": transforms.auto_augment, "re_prob": transforms.reprob} if training else {}
    loader = create_loader(
        dataset,
        input_size=(3, settings.size, settings.size),
        batch_size=settings.batch_size,
        is_training=training,
        re_mode="pixel",
        color_jitter=None,
        interpolation="bicubic",
        crop_pct=None if training else EVALUATION.crop_pct,
        num_workers=settings.workers,
        use_prefetcher=False,
        persistent_workers=settings.workers > 0,
        **policy,
    )
    for part in dataset.transform.transforms:
        if isinstance(part, RandAugment):
            repair(part)  # with Pillow 13 it stops at some image
    return lambda: loader


def chosen(count: int, most: int) -> np.ndarray:
    """Evenly spaced indices."""
    return np.arange(min(count, most)) * count // min(count, most)


def seconds(epoch: Iterable) -> tuple[float, int]:
    """How long it takes, and the images in it."""
    start, count = time.perf_counter(), 0
    for images, _ in epoch:
        count += len(images)
    return time.perf_counter() - start, count


def section_rows(section: str, settings: Settings) -> Table:
    """Images per second of both, and the ratio of ours."""
    loaders = {"s4nd": ours(section, settings), "timm": timms(section, settings)}
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(settings.rounds + 1):
        for name, epoch in loaders.items():
            took, count = seconds(epoch())
            speeds[name].append(count / took)
    speeds = {name: values[1:] for name, values in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["s4nd"], speeds["timm"], strict=True)]
    rows: Table = {name: {"images/s": median(values)} for name, values in speeds.items()}
    rows["s4nd"] |= {f"images/s{RATIO}timm": median(ratios), f"target{RATIO}timm": TARGET}
    rows["s4nd"] |= {f"least{RATIO}timm": min(ratios), f"most{RATIO}timm": max(ratios)}
    return rows


def draw(results: dict[str, Table], path: Path) -> None:
    """A bar for each section: the median ratio, with the range over the rounds, and the target as a line."""
    sheet = Figure(figsize=(7, 1.2 + 0.5 * len(results)), dpi=80, layout="constrained")
    axes = sheet.subplots()
    ours = [rows["s4nd"] for rows in results.values()]
    ratios = [row[f"images/s{RATIO}timm"] for row in ours]
    reach = [(x - row[f"least{RATIO}timm"], row[f"most{RATIO}timm"] - x) for x, row in zip(ratios, ours, strict=True)]
    drawn = axes.barh(list(results), ratios, xerr=np.array(reach).T, color="tab:blue", ecolor="0.4")
    axes.bar_label(drawn, [figure(x) for x in ratios], fontsize=8, label_type="center", color="white")
    axes.axvline(TARGET, color="black", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set_title("images/s of the loader in those of timm's", fontsize=10)
    sheet.savefig(path, pil_kwargs={"optimize": True})


def main() -> None:
    """Measure, print the tables, write the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ of images")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="all by default")
    for name in ("size", "batch_size", "images", "workers", "rounds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{getattr(Settings, name)}")
    parser.add_argument("--out", type=Path, default=Path("docs/bench_loader"), help="path of the results, no suffix")
    args = parser.parse_args()
    names = ("size", "batch_size", "images", "workers", "rounds")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = replace(Settings(args.data), **given)
    if min(settings.size, settings.batch_size, settings.images, settings.rounds) < 1 or settings.workers < 0:
        parser.error("--size, --batch-size, --images and --rounds must be positive, --workers at least 0")
    if settings.images < settings.batch_size:
        parser.error(f"--images {settings.images} must fill a batch of {settings.batch_size}")
    if not (args.data / "train").is_dir():
        parser.error(f"--data {args.data} must be a folder with train/<class>/ of images")
    torch.set_num_threads(1)  # as in the workers of a loader
    results: dict[str, Table] = {}
    for section in args.only:
        results[section] = section_rows(section, settings)
        title = f"{section}, {settings.size} pixels, {settings.workers} workers"
        print(f"\n{markdown(title, results[section])}", flush=True)
    print(f"\nTarget: at least {TARGET:g} of timm's images/s.")
    machine = {"torch": torch.__version__, "timm": timm.__version__, "cpus": os.cpu_count()}
    report = machine | {"settings": asdict(settings) | {"data": args.data.name}, "target": TARGET, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(results, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
