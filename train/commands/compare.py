"""Checkpoints at several resolutions in one table, by every resampling method, beside their control and what needs no model."""

import copy
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s4nd import S4ND, set_resample
from s4nd.models import hold_convolutions

from ..about import of_data, of_weights, resample_of
from ..checkpoint import Meta, load_model, read_checkpoint
from ..config import Config
from ..data import LISTED_DATASETS, build_dataset
from ..data.dataset import ImageDataset
from ..data.names import difference, order_by_name
from ..data.video_sets import VideoDataset
from ..processes import Place
from ..resolution import Curve, SizeRefused, conclusion, evaluate_sizes, plot, save_curves, table
from ..task import TASKS, Task, Unchanged, agreement, task_of

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """What is asked.

    Attributes:
        checkpoints: paths.
        sizes: pixels per side.
        frames: of a clip of unchanged duration; None: the checkpoint's.
        resample: resampling methods at other sizes, a row each; None: the checkpoint's.
        control: also a row of the same images resized to the trained size; restored ones are resized back.
        data, root: the data set, and its folder or file; None: the checkpoint's.
        limit: test images at most; None: the checkpoint's.
        batch_size: images or clips at a time, of all processes together.
        workers: loader processes.
        skip_bad: leave out images that cannot be read.
        noise_density: of images to restore, noise of one density at all sizes, its deviation in proportion to the size: the
            same signal, sampled otherwise; else of one deviation.
        out: the plot; None: resolution.png beside the first checkpoint.
    """

    checkpoints: Sequence[str]
    sizes: Sequence[int]
    frames: Sequence[int] | None = None
    resample: Sequence[str] | None = None
    control: bool = False
    data: str | None = None
    root: str | None = None
    limit: int | None = None
    batch_size: int = 32
    workers: int = 0
    skip_bad: bool = False
    noise_density: bool = False
    out: str | None = None


def compare(wanted: Comparison, place: Place) -> None:
    """Print the table and the sentence, and write the plot and the numbers; by the first of several processes.

    Raises:
        ValueError, FileNotFoundError: a checkpoint that cannot be evaluated on the data; what was computed before is kept.
    """
    task = _task(wanted)
    if wanted.noise_density and task is not TASKS["restoration"]:
        raise ValueError(f"the density of the noise is of models that restore images, these are {task.name}")
    curves: list[Curve] = []
    without: dict[str, Mapping[int, float]] = {}
    try:
        for path, name in zip(wanted.checkpoints, _names(wanted), strict=True):
            _curves(path, name, wanted, task, place, curves, without)
    finally:  # whatever goes wrong, what has been computed is not lost
        known = [curve for curve in curves if curve.accuracy]
        if known and place.rank == 0:
            where = Path(wanted.out or Path(wanted.checkpoints[0]).with_name("resolution.png"))
            rows = [*known, *_rows_without_model(task.without_model, without)]
            print(table(rows, task.metric))
            print(f"plot: {plot(rows, where, task.metric)}")
            save_curves(rows, where.with_suffix(".json"))
            print(conclusion(rows, task.metric))
    refused = [f"{curve.name}: {reason}" for curve in curves for reason in curve.refused.values()]
    if refused and not known:
        raise ValueError("; ".join(refused))
    print("".join(f"{line}\n" for line in [*refused, *_chosen(wanted, task)]), end="")


def _task(wanted: Comparison) -> Task:
    """Of all checkpoints, whose figures stand in one table.

    Raises:
        ValueError: they have several.
    """
    tasks = {read_checkpoint(path)[2].task: path for path in wanted.checkpoints}
    if len(tasks) > 1:
        found = ", ".join(f"{path} is {name}" for name, path in tasks.items())
        raise ValueError(f"figures of different tasks do not stand in one table: {found}")
    return TASKS[next(iter(tasks))]


def _rows_without_model(label: str, found: Mapping[str, Mapping[int, float]]) -> list[Curve]:
    """What needs no model, on the data of each checkpoint; one row for all where they agree."""
    several = any(figures != next(iter(found.values())) for figures in found.values())
    rows = {f"{name}, {label}" if several else label: figures for name, figures in found.items()}
    return [Curve(row, None, figures) for row, figures in rows.items()]


def _chosen(wanted: Comparison, task: Task) -> list[str]:
    """What flatters the table: checkpoints that were chosen by their figure on the images of the table."""
    chosen = [path for path in wanted.checkpoints if (meta := read_checkpoint(path)[2]).best and meta.split == "test"]
    if not chosen or wanted.data or wanted.root:
        return []
    return [f"chosen among its epochs by {task.metric.name} on this test split, which flatters it: {', '.join(chosen)}"]


def _curves(
    path: str,
    name: str,
    wanted: Comparison,
    task: Task,
    place: Place,
    curves: list[Curve],
    without: dict[str, Mapping[int, float]],
) -> None:
    """Append the curve of a checkpoint, or for videos one for each of wanted.frames, and fill it size by size; enter what needs
    no model on its data."""
    about: dict[str, Any] = {**of_weights(path)}
    model, config, meta = load_model(path)
    data = config.data
    dataset, order = _data(path, config, meta, wanted)
    about |= {
        "epoch": meta.epoch,
        "skip_bad": wanted.skip_bad,
        "noise": data.noise,
        "one_density": wanted.noise_density,
    }
    about |= {"metric": task.metric.name, "unit": task.metric.unit}
    about |= of_data(wanted.data or data.name, dataset)
    if order is not None:
        model.register_forward_hook(lambda module, args, logits: logits[:, order])
    settings: dict[str, Any] = {key: getattr(wanted, key) for key in ("batch_size", "workers", "skip_bad")}
    settings |= {"transforms": data.transforms()} | place._asdict()
    sizes, trained_size = sorted(set(wanted.sizes)), config.stages[meta.stage].size
    deviations = {size: _noise(data.noise, size / trained_size if wanted.noise_density else 1) for size in sizes}
    if figures := _without_model(meta, dataset, order, deviations, settings):
        without[name] = figures
    for frames in sorted(set(wanted.frames or [data.frames])):
        sampling = data.sampling()
        sampling = sampling and replace(sampling, frames=frames)
        if sampling:
            print(f"{name}: {sampling.protocol()}", flush=True)
        row = f"{name}, {frames} frames" if wanted.frames else name
        methods: Sequence[str | None] = wanted.resample or [None]
        for method in methods:
            try:
                variant = _resampled(model, method, trained_size)
            except ValueError as error:  # of this model alone
                print(f"{row}, {method}: {error}", flush=True)
                continue
            rows: dict[str, int | None] = {f"{row}, {method}" if method else row: None}
            if wanted.control and method in (None, methods[0]):  # at the trained size all are one
                rows[f"{row}, control"] = trained_size
            for label, control in rows.items():
                accuracy: dict[int, float] = {}
                refused: dict[int, str] = {}
                how: dict[str, Any] = {"resample": method or resample_of(model), "control": control is not None}
                how |= {"frames": sampling and frames}
                curves.append(Curve(label, trained_size, accuracy, refused, about | how))
                for size, deviation in deviations.items():
                    of: dict[str, Any] = {"sampling": sampling, "control": control, "noise": deviation}
                    try:
                        accuracy |= evaluate_sizes(variant, dataset, [size], **of, **settings)
                    except SizeRefused as error:
                        refused[size] = str(error)
                    _tell(label, size, accuracy, task, place)


def _without_model(
    meta: Meta,
    dataset: ImageDataset | VideoDataset,
    order: list[int] | None,
    deviations: Mapping[int, float | None],
    settings: Mapping[str, Any],
) -> dict[int, float]:
    """By size: of a multi-label checkpoint what its majority is worth on the data, whatever the size, and of one that restores
    images what they are worth as they are; nothing of others.

    Args:
        order: of the checkpoint's answers, as those of the data.
        deviations: of the noise, by size; None without.
        settings: of `evaluate_sizes`.
    """
    if meta.majority:
        answer = meta.majority if order is None else [meta.majority[i] for i in order]
        return dict.fromkeys(deviations, agreement(answer, dataset.labels))
    figures: dict[int, float] = {}
    for size, deviation in deviations.items():
        if deviation is not None:
            figures |= evaluate_sizes(Unchanged(), dataset, [size], noise=deviation, **settings)
    return figures


def _noise(deviation: float | None, times: float) -> float | None:
    return None if deviation is None else times * deviation


def _tell(label: str, size: int, accuracy: dict[int, float], task: Task, place: Place) -> None:
    """Progress, on stderr: minutes can pass until the table is whole."""
    if place.rank == 0:
        what = task.metric.show(accuracy[size]) if size in accuracy else "refused"
        print(f"{label}, {size} px: {what}", file=sys.stderr, flush=True)


def _data(
    path: str, config: Config, meta: Meta, wanted: Comparison
) -> tuple[ImageDataset | VideoDataset, list[int] | None]:
    """What a checkpoint is evaluated on, and its answers in the order of the classes there; None where it is their own.

    Raises:
        ValueError: data of another kind, task or other classes.
    """
    data = config.data
    source = replace(data, name=wanted.data or data.name)
    if (source.sampling() is None) != (data.sampling() is None):
        raise ValueError(
            f"{path} was trained on {data.name}, and {source.name} is not of the same kind: images or videos"
        )
    if wanted.frames and data.sampling() is None:
        raise ValueError(f"--frames is for videos, and {path} was trained on the images of {data.name}")
    root = wanted.root if wanted.root or wanted.data else data.root
    limit = data.test_limit if wanted.limit is None else wanted.limit
    lists = data.lists if source.name in LISTED_DATASETS else None
    where: dict[str, Any] = {"lists": lists, "official_split": data.split, "reading": data.reading()}
    dataset = build_dataset(source.name, root, "test", limit=limit, **where)
    task = task_of(dataset.labels, data.noise)
    if task.name != meta.task:
        raise ValueError(f"{path} is {meta.task}, and the data of {source.name} is {task.name}")
    if task.names(dataset.classes) == meta.classes:
        return dataset, None
    order = order_by_name(dataset.classes, meta.classes)
    if order is None:
        odd = difference(meta.classes, dataset.classes, "the checkpoint", "the data")
        raise ValueError(f"{path} was trained on other classes than those of {source.name}: {odd}")
    return dataset, order


def _resampled(model: torch.nn.Module, method: str | None, trained_size: int) -> torch.nn.Module:
    """The model, or a copy that is resampled by another method at sizes that it was not trained at."""
    if method is None:
        return model
    if method in ("continuous", "fold") and not any(isinstance(module, S4ND) for module in model.modules()):
        if method == "continuous":  # what convolutions do at any size
            return model
        raise ValueError("left out: fold is for S4ND layers, of which it has none")
    model = copy.deepcopy(model)
    if method not in ("continuous", "fold"):
        hold_convolutions(model, trained_size)
    set_resample(model, method)
    return model


def _names(wanted: Comparison) -> list[str]:
    """The models' names; where two checkpoints have the same one, with the run directory, or else the whole path."""
    models = [read_checkpoint(path)[1].model.name for path in wanted.checkpoints]
    paths = [Path(path) for path in wanted.checkpoints]
    for where in ([path.parent.name for path in paths], wanted.checkpoints):
        names = [
            model if Counter(models)[model] == 1 else f"{model} ({place})"
            for model, place in zip(models, where, strict=True)
        ]
        if len(set(names)) == len(names):
            break
    return names
