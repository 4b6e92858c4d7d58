"""The figures of run folders: what `s4nd eval` left beside one of them for the very bytes of their last.safetensors.

An evaluation by an older version does not say of which file and which images it is. It counts where nothing speaks against it:
it lies in the run's own folder, is younger than the checkpoint, has its model's name, and at the trained size its accuracy.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from result_lines import CONTROL, Line

from s4nd.train.about import of_weights
from s4nd.train.commands.report import Run, read_run
from s4nd.train.config import config_to_dict
from s4nd.train.resolution import CURVES_FILE, Curve
from s4nd.train.state import flatten
from s4nd.train.task import TASKS

# What does not change what a run computes; the seed tells the runs of one row apart.
ASIDE = {
    "model.name",
    "seed",
    "out",
    "resume",
    "device",
    "wandb",
    "log_every",
    "save_every_steps",
    "save_every_minutes",
} | {f"data.{key}" for key in ("workers", "prefetch")}
OLD_NAME = re.compile(r"([^,]+?)(?:, (?P<frames>\d+) frames)?(?:, (?P<resample>[a-z+]+))?")
PRINTED = 5e-4  # half of a printed digit: how near an old evaluation must come to the accuracy in the checkpoint
DEFAULTS = {"metric": "accuracy", "unit": "%"}  # of an evaluation that does not say

About = Mapping[str, Any]


def read_runs(folders: Iterable[Path]) -> list[Line]:
    """The lines of run folders, in their order; the majority of each evaluation, where it has one, last.

    Raises:
        FileNotFoundError, ValueError: no run, an unfinished one or one that was given twice; one that was not evaluated, or not
            as it is now; figures of other data, another number of images or another metric.
    """
    runs = [_finished(read_run(folder)) for folder in folders]
    configs = [
        {k: v for k, v in flatten(_joined(config_to_dict(run.config))).items() if k not in ASIDE} for run in runs
    ]
    _check_seeds(runs, configs)
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]  # absent is none
    found = _evaluations(runs)
    _check_data(runs, found)
    lines = {}
    for i, (run, config) in enumerate(zip(runs, configs, strict=True)):
        settings = {key: _word(config[key]) for key in differing if key in config}
        for curve, about in found[i]:
            for line in _lines(run, settings, curve, about):
                place = i, line.resample, line.frames, line.size
                if lines.setdefault(place, line).value != line.value:  # it may stand beside two runs
                    raise ValueError(f"{run.folder} has two figures at {line.size}, {line.resample}: evaluate it again")
    counted = {id(curve) for curves in found for curve, _ in curves}
    files = [run.curves for run in runs if any(id(curve) in counted for curve in run.curves)]
    return [*lines.values(), *_majorities(files, next(iter(lines.values())))]


def _joined(value: Any) -> Any:
    """A config whose lists of numbers or words are one value each: the sizes of a stage are one setting."""
    if isinstance(value, Mapping):
        return {key: _joined(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = [_joined(one) for one in value]
        return inner if any(isinstance(one, Mapping) for one in inner) else " ".join(map(str, inner))
    return value


def _finished(run: Run) -> Run:
    wanted = sum(stage.epochs for stage in run.config.stages)
    if run.meta.epoch != wanted:
        raise ValueError(f"{run.folder} is not finished: its last.safetensors is of epoch {run.meta.epoch} of {wanted}")
    return run


def _check_seeds(runs: list[Run], configs: list[dict[str, Any]]) -> None:
    """Refuse one training that counts as two: the spread of equal seeds is none."""
    same = Counter(
        (run.config.model.name, run.config.seed, repr(sorted(config.items())))
        for run, config in zip(runs, configs, strict=True)
    )
    (model, seed, _), count = same.most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} runs of {model} have one config and one seed, {seed}: needs another seed for each")


def _evaluations(runs: list[Run]) -> list[list[tuple[Curve, About]]]:
    """Of each run its curves and what is known of them."""
    digests = [of_weights(run.folder / "last.safetensors")["sha256"] for run in runs]
    found: list[list[tuple[Curve, About]]] = [[] for _ in runs]
    for i, run in enumerate(runs):
        for curve in run.curves:
            if curve.about is None:
                about = _old(run, curve)
                if about is not None:
                    found[i].append((curve, about))
            elif curve.about.get("sha256") in digests:
                if missing := {"resample", "control"} - curve.about.keys():  # as older versions wrote it
                    path = run.folder / CURVES_FILE
                    raise ValueError(
                        f"{path}, {curve.name}: does not say {', '.join(sorted(missing))}: evaluate it again"
                    )
                found[digests.index(curve.about["sha256"])].append((curve, curve.about))
    for run, curves in zip(runs, found, strict=True):
        if not curves:
            raise ValueError(_why_none(run))
    return found


def _old(run: Run, curve: Curve) -> About | None:
    """What the name of a curve says that has nothing else; None if it is of another model, or something speaks against it."""
    match = OLD_NAME.fullmatch(curve.name)
    model = run.config.model.name
    if curve.trained_size is None or match is None or match[1] not in (model, f"{model} ({run.folder.name})"):
        return None
    path = run.folder / CURVES_FILE
    if path.stat().st_mtime < (run.folder / "last.safetensors").stat().st_mtime:
        return None
    resample, frames = match["resample"], match["frames"] and int(match["frames"])
    here = curve.accuracy.get(curve.trained_size)
    comparable = run.meta.split == "test" and frames in (None, run.config.data.frames)
    if comparable and (here is None or abs(here - run.meta.accuracy) > PRINTED):
        return None
    print(
        f"{path}, {curve.name}: an older evaluation, which does not say on which images; nothing speaks against it",
        file=sys.stderr,
    )
    return {
        "resample": resample or "as trained",
        "control": resample == CONTROL,
        "frames": frames,
        "metric": TASKS[run.meta.task].metric.name,
    }


def _why_none(run: Run) -> str:
    path, sizes = run.folder / CURVES_FILE, "--sizes N ..."
    again = f"s4nd eval {run.folder}/last.safetensors {sizes} --control"
    if not run.curves:
        return f"{run.folder} was not evaluated: {again}"
    said = {
        f"{curve.about['checkpoint']} after epoch {curve.about['epoch']}"
        if curve.about
        else "a file that it does not name"
        for curve in run.curves
        if curve.trained_size is not None
    }
    return f"{path} is not of last.safetensors as it is now, but of {' and '.join(sorted(said))}: {again}"


def _check_data(runs: list[Run], found: list[list[tuple[Curve, About]]]) -> None:
    """Refuse figures that do not stand beside each other."""
    whats = {"data": "data sets", "images": "numbers of test images", "labels": "images or labels", "metric": "metrics"}
    whats |= {
        "unit": "units",
        "noise": "deviations of the noise",
        "skip_bad": "ways with unreadable images (--skip-bad)",
    }
    for key, what in whats.items():
        said: dict[Any, Path] = {}
        for run, curves in zip(runs, found, strict=True):
            said |= {{**DEFAULTS, **about}[key]: run.folder for _, about in curves if key in {**DEFAULTS, **about}}
        if len(said) > 1:
            several = ", ".join(f"{value} ({folder})" for value, folder in said.items())
            raise ValueError(f"one table needs one test, got several {what}: {several}")
    if any("labels" not in about for curves in found for _, about in curves):  # an older one: the configs must do
        sets = {(run.config.data.name, run.config.data.root, run.config.data.test_limit) for run in runs}
        if len(sets) > 1:
            raise ValueError(
                f"an older evaluation does not say on what data it is, and the configs have several: {sets}"
            )


def _lines(run: Run, settings: Mapping[str, str], curve: Curve, about: About) -> Iterable[Line]:
    about = {**DEFAULTS, **about}
    for size, value in sorted(curve.accuracy.items()):
        yield Line(
            run=run.folder.name,
            model=run.config.model.name,
            seed=run.config.seed,
            epochs=run.meta.epoch,
            hours=round(sum(record.get("seconds", 0) for record in run.epochs) / 3600, 4),
            data=about.get("data", run.config.data.name),
            images=about.get("images"),
            resample=CONTROL if about["control"] else about["resample"],
            frames=about.get("frames"),
            trained_size=curve.trained_size,
            size=size,
            metric=about["metric"],
            unit=about["unit"],
            value=_in(about["unit"], value),
            settings=settings,
        )


def _majorities(files: Iterable[list[Curve]], like: Line) -> list[Line]:
    """Answers that need no image, whatever the size, of the evaluations that the lines are of; `like` is one of these."""
    lines: dict[tuple[str, int], Line] = {}
    for curve in (curve for curves in files for curve in curves if curve.trained_size is None):
        for size, value in curve.accuracy.items():
            shared = {"data": like.data, "images": like.images, "metric": like.metric, "unit": like.unit}
            nothing = dict.fromkeys(("seed", "epochs", "hours", "frames", "trained_size"))
            value = _in(like.unit, value)
            line = Line(run="", model=curve.name, resample="", size=size, value=value, **shared, **nothing)
            if lines.setdefault((curve.name, size), line).value != value:
                raise ValueError(f"got several answers that need no image: {curve.name} is {value} and another number")
    return list(lines.values())


def _in(unit: str, value: float) -> float:
    return 100 * value if unit == "%" else value


def _word(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
