"""Time and memory of S4ND-ConvNeXt-3D against I3D and S3D, and the reading of clips against decord's own.

    python tools/bench_video.py
    python tools/bench_video.py --models micro --size 64 --frames 8 --videos data/arid6 --out runs/bench_video

float32, on the CPU, without the optimizer. Prints Markdown tables, and writes OUT.json and OUT.png. In each table all rows take
turns in one process; times are medians over the rounds. Ratios are to the rival in the faster of its memory layouts; below 1
the row is the better one, but for clips/s. Memory is the peak of one run of a fresh copy of the model, input excluded.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from bench_measure import Contestant, inference, measure
from bench_models import bars, compare, memory, step
from bench_report import RATIO, Table, figure, markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from timm.utils import reparameterize_model
from torch import Tensor, nn

import s4nd.models  # noqa: F401, registers the models
from s4nd.train.data import Clips, ClipSampling
from s4nd.train.data.film import Film
from s4nd.train.data.video_sets import ListedVideos, VideoFolder

OURS, RIVALS = "S4ND-3D", ("I3D", "S3D")
MODELS = {OURS: "s4nd_convnext3d", "I3D": "convnext_i3d", "S3D": "convnext_s3d"}
LAYOUTS = {  # of a clip, and of the weights of convolutions of as many axes
    "contiguous": {4: torch.contiguous_format, 5: torch.contiguous_format},
    "channels_last_3d": {4: torch.channels_last, 5: torch.channels_last_3d},
}
CLASSES = 51  # HMDB-51's
MOST_VIDEOS = 32

# Of a training step, at most, in times of the rival; of clips/s, at least, in those of decord.
TARGETS = {"training": {"I3D": 0.5, "S3D": 0.8}, "decoding": 0.85}


@dataclass(frozen=True)
class Settings:
    """What is measured, on clips of frames x size x size."""

    rounds: int = 3
    batch_size: int = 2
    size: int = 112
    frames: int = 16
    models: str = "tiny"
    args: dict[str, Any] = field(default_factory=dict)  # of every model
    videos: Path | None = None

    @property
    def clips(self) -> str:
        return f"{self.batch_size} clips of {self.frames} x {self.size} x {self.size}"


QUICK = Settings(1, 2, 32, 2, args={"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)})


def build(settings: Settings) -> dict[str, nn.Module]:
    """Every model in every layout, by row: label, layout."""
    grid = {"img_size": settings.size, "num_frames": settings.frames}
    models = {}
    for label, name in MODELS.items():
        args = settings.args | (grid if label == OURS else {})
        for layout, formats in LAYOUTS.items():
            model = timm.create_model(f"{name}_{settings.models}", num_classes=CLASSES, **args)
            for p in model.parameters():
                if p.ndim in formats:
                    p.data = p.data.contiguous(memory_format=formats[p.ndim])
            models[f"{label}, {layout}"] = model
    return models


def signal(row: str, settings: Settings) -> Tensor:
    """Random clips in the row's layout."""
    u = torch.randn(settings.batch_size, 3, settings.frames, settings.size, settings.size)
    return u.contiguous(memory_format=LAYOUTS[row.split(", ")[1]][5])


def table(
    contestant: Callable[[nn.Module, Tensor], Contestant], models: dict[str, nn.Module], settings: Settings
) -> Table:
    """Time, clips per second and memory of each model, and the ratios to both rivals."""
    signals = {row: signal(row, settings) for row in models}
    runs = {row: contestant(model, signals[row]) for row, model in models.items()}
    times = measure(runs, settings.rounds)
    rows: Table = {}
    for row, model in models.items():
        runs[row].forget()
        ms, MiB = times[row], memory(contestant, model, signals[row])
        rows[row] = {"ms": ms, "clips/s": 1e3 * settings.batch_size / ms, "MiB": MiB}
    targets = TARGETS["training"] if contestant is step else {}
    for rival in RIVALS:
        rows = compare(rows, rival, {OURS: targets[rival]} if rival in targets else {})
    return rows


def training(settings: Settings) -> Table:
    """Training step: forward, cross-entropy, backward."""
    return table(step, {row: model.train() for row, model in build(settings).items()}, settings)


def evaluation(settings: Settings) -> Table:
    """Inference, with S4ND kernels and their matrices cached, and fused by timm.utils.reparameterize_model."""
    models = {row: model.eval() for row, model in build(settings).items()}
    fused = {row.replace(", ", " fused, "): reparameterize_model(models[row]) for row in models if row.startswith(OURS)}
    return table(inference, models | fused, settings)


def video_files(folder: Path) -> list[Path]:
    """In a fixed random order, so that the first ones are of all classes."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VideoFolder.extensions)
    return [files[i] for i in np.random.default_rng(0).permutation(len(files))]


def decoding(settings: Settings) -> Table:
    """Reading clips from files. s4nd: as training does, cropped at random and resized. decord: VideoReader and get_batch of the
    same frames, in the size of the file; scaled: those in the size of the clip. One thread, as in the workers of a loader."""
    import decord

    files = video_files(settings.videos)[:MOST_VIDEOS]
    names = [str(path.relative_to(settings.videos)) for path in files]
    videos = ListedVideos(settings.videos, ["video"], names, [0] * len(names))
    view = Clips(videos, settings.size, ClipSampling(frames=settings.frames), train=True)
    indices = []
    for path, (start, *_) in zip(videos.paths, view.numbers.numpy(), strict=True):
        with Film(path) as film:
            indices.append(view.frame_indices(film.times, np.array([start])))

    def plain(**size: int) -> None:
        for path, frames in zip(videos.paths, indices, strict=True):
            decord.VideoReader(path, num_threads=1, **size).get_batch(frames)

    readers = {"s4nd": lambda: [view[i] for i in range(len(view))], "decord": plain}
    padded = -(-3 * settings.size // 64) * 64  # bytes of a row; decord takes a multiple of the width for more channels
    if padded == 3 * settings.size or padded % settings.size:
        readers["decord scaled"] = lambda: plain(width=settings.size, height=settings.size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = measure({row: Contestant(run) for row, run in readers.items()}, settings.rounds)
    torch.set_num_threads(threads)
    rows: Table = {}
    for row, ms in times.items():
        ratios = {f"clips/s{RATIO}{other}": times[other] / ms for other in times if other != "s4nd"}
        rows[row] = {"ms a clip": ms / len(names), "clips/s": 1e3 * len(names) / ms} | ratios
    rows["s4nd"] |= {f"target{RATIO}{other}": TARGETS["decoding"] for other in times if other != "s4nd"}
    return rows


SECTIONS: dict[str, Callable[[Settings], Table]] = {
    "training": training,
    "inference": evaluation,
    "decoding": decoding,
}


def draw(results: dict[str, Table], path: Path) -> None:
    """A panel for each section and rival: bars for the ratios of time and of memory; one for the reading of clips."""
    panels = [
        (f"{section}, {rival}", rows, rival)
        for section, rows in results.items()
        for rival in (("",) if section == "decoding" else RIVALS)
    ]
    heights = [1 + 0.35 * len(rows) for _, rows, _ in panels]
    sheet = Figure(figsize=(12, sum(heights)), dpi=80, layout="constrained")
    grid = sheet.subplots(len(panels), squeeze=False, height_ratios=heights).flat
    for axes, (title, rows, rival) in zip(grid, panels, strict=True):
        if rival:
            ours = {row: {k: x for k, x in columns.items() if k.endswith(rival)} for row, columns in rows.items()}
            bars(axes, title, ours)
        else:
            speeds(axes, rows)
    sheet.savefig(path, pil_kwargs={"optimize": True})


def speeds(axes: Axes, rows: Table) -> None:
    """Clips per second of each way of reading them."""
    values = [columns["clips/s"] for columns in rows.values()]
    axes.bar_label(axes.barh(list(rows), values), [figure(x) for x in values], fontsize=7, padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("decoding: clips per second", fontsize=10)


def goals(section: str) -> str:
    """The targets of a section in words."""
    target = TARGETS.get(section)
    if target is None:
        return ""
    if section == "decoding":
        return f" Target: at least {target:g} of decord's clips/s."
    return f" Target for {OURS}: at most {' and '.join(f'{x:g} x {rival}' for rival, x in target.items())}."


def main() -> None:
    """Measure, print the tables, write the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="all by default")
    parser.add_argument("--models", choices=["tiny", "micro"], default="tiny", help="tiny")
    parser.add_argument("--size", type=int, help="pixels per side; 112")
    parser.add_argument("--frames", type=int, help="16")
    parser.add_argument("--batch-size", type=int, help="2")
    parser.add_argument("--rounds", type=int, help="3")
    parser.add_argument(
        "--videos", type=Path, help=f"folder of videos, {MOST_VIDEOS} of which are read; none: no decoding"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("docs/bench_video"), help="path of the results, no suffix")
    parser.add_argument("--quick", action="store_true", help="tiny models and one round, to try the tool itself")
    args = parser.parse_args()
    names = ("size", "frames", "batch_size", "rounds")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = replace(QUICK if args.quick else Settings(), models=args.models, videos=args.videos, **given)
    if min(settings.rounds, settings.batch_size, args.threads) < 1 or settings.frames < 2 or settings.size < 32:
        parser.error("--rounds, --batch-size and --threads must be positive, --frames at least 2, --size at least 32")
    if args.videos is not None and not video_files(args.videos):
        parser.error(f"--videos {args.videos} must be a folder that holds {', '.join(VideoFolder.extensions)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results: dict[str, Table] = {}
    for section in args.only:
        if section == "decoding" and args.videos is None:
            print("\ndecoding: skipped, it needs --videos DIR", flush=True)
            continue
        print(f"\n{section}: {' '.join(SECTIONS[section].__doc__.split())}{goals(section)}", flush=True)
        results[section] = SECTIONS[section](settings)
        title = f"clips of {settings.frames} frames" if section == "decoding" else f"{args.models}, {settings.clips}"
        print(f"\n{markdown(title, results[section])}", flush=True)
    if not results:
        parser.error("nothing to measure: --only decoding needs --videos")
    machine = {"torch": torch.__version__, "timm": timm.__version__, "threads": args.threads, "cpus": os.cpu_count()}
    report = machine | {"settings": asdict(settings), "targets": TARGETS, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    draw(results, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
