"""The command `s4nd`: train, evaluate at several resolutions, export."""

import argparse
import contextlib
import copy
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from s4nd import S4ND, set_resample
from s4nd.models import hold_convolutions
from s4nd.nn.resolution import MODEL_RESAMPLE
from s4nd.ops import BackendError

from .checkpoint import load_model, read_checkpoint
from .config import load_config
from .convert import convert_checkpoint
from .data import LISTED_DATASETS, build_dataset
from .data.names import difference, order_by_name
from .device import choose_device
from .engine import DivergedError, train
from .export import INSTALL, export_model
from .processes import Place, join, leave
from .report import write_report
from .requests import Interrupted
from .resolution import Curve, SizeRefused, conclusion, evaluate_sizes, plot, require_matplotlib, save_curves, table
from .task import TASKS, Task, agreement, task_of
from .watch import Top, watch

USER_ERRORS = (ValueError, KeyError, OSError, ImportError, BackendError, DivergedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 2 after an error of the user's to mend, or 128 + n after signal n."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        # str of a KeyError is the repr of its message
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"s4nd: error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"s4nd: {error}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        print("s4nd: interrupted; resume=auto continues a training", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s4nd", description="Train S4ND models; evaluate them at unseen resolutions.")
    parser.add_argument("--version", action="version", version=f"s4nd {_version()}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="train|eval|report|export|convert|watch")

    training = commands.add_parser("train", parents=[common], help="train a model", description="Train a model.")
    training.add_argument("config", help="YAML file, such as configs/photos/s4nd_iso_tiny.yaml")
    training.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=0.01 or resume=auto")
    training.set_defaults(command=_train)

    testing = commands.add_parser("eval", parents=[common], help="accuracy at several resolutions, as table and plot")
    testing.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    testing.add_argument("--sizes", nargs="+", type=int, required=True, help="pixels per side, such as 16 24 32 48")
    testing.add_argument(
        "--frames", nargs="+", type=int, help="of a clip of unchanged duration, such as 8 16; videos only"
    )
    testing.add_argument(
        "--resample",
        nargs="+",
        choices=MODEL_RESAMPLE,
        help="ways to the kernels of other sizes, a row each; default: the checkpoint's. hold, dilate and "
        "hold+dilate (the first layer held, the rest dilated) are for convolutions too",
    )
    testing.add_argument(
        "--control",
        action="store_true",
        help="also a row of the same images resized to the trained size, and run there",
    )
    testing.add_argument("--data", metavar="NAME", help="data set; default: the checkpoint's")
    testing.add_argument("--root", help="its folder or file; default: the checkpoint's")
    testing.add_argument("--limit", type=int, help="use this many test images or videos at most")
    testing.add_argument(
        "--batch-size", type=int, default=32, help="images or clips at a time; more is faster on a GPU"
    )
    testing.add_argument("--workers", type=int, default=0, help="loader processes")
    testing.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    testing.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    testing.add_argument("--out", help="the plot; default: resolution.png beside the first checkpoint")
    testing.set_defaults(command=_eval)

    reporting = commands.add_parser("report", parents=[common], help="what some runs did, as one HTML file")
    reporting.add_argument("runs", nargs="+", metavar="RUN", help="run directories, such as runs/photos/s4nd_iso_tiny")
    reporting.add_argument("--out", default="report.html", help="the HTML file; default: report.html")
    reporting.set_defaults(command=_report)

    exporting = commands.add_parser(
        "export", parents=[common], help="a file that runs without s4nd, for one size of images or clips"
    )
    exporting.add_argument("checkpoint", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    exporting.add_argument("out", metavar="OUT", help="model.onnx, or model.pt2 for torch.export")
    exporting.add_argument("--size", nargs="+", type=int, help="pixels per side, or height and width; default: trained")
    exporting.add_argument("--frames", type=int, help="of a clip of unchanged duration; default: trained; videos only")
    exporting.add_argument("--opset", type=int, help="ONNX opset; default: the exporter's")
    exporting.set_defaults(command=_export)

    converting = commands.add_parser(
        "convert", parents=[common], help="weights of the reference implementation as ours"
    )
    converting.add_argument("reference", metavar="REFERENCE", help="its .ckpt, .pt, .pth or .safetensors")
    converting.add_argument("out", metavar="OUT", help="the .safetensors file to write, for timm")
    converting.add_argument("--model", metavar="NAME", required=True, help="such as s4nd_convnext_tiny")
    converting.add_argument("--arg", nargs="+", action="extend", default=[], metavar="key=value", help="of the model")
    converting.set_defaults(command=_convert)

    watching = commands.add_parser(
        "watch", parents=[common], help="the running answer of a causal video model while a file decodes"
    )
    watching.add_argument("checkpoint", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    watching.add_argument("video", metavar="VIDEO", help="a video file")
    watching.add_argument("--every", type=int, default=1, metavar="N", help="print every N-th answer, and the last")
    watching.add_argument("--top", type=int, default=5, metavar="K", help="print the K likeliest classes")
    watching.set_defaults(command=_watch)
    return parser


def _train(args: argparse.Namespace) -> None:
    folder = train(load_config(args.config, args.overrides))
    if os.environ.get("RANK", "0") == "0":  # one process speaks for all of torchrun's
        best = folder / "best.safetensors"
        _, _, meta = read_checkpoint(best)
        of = "the test split, which chose it" if meta.split == "test" else "the validation part of the training images"
        what = "" if meta.task == "single-label" else f"{TASKS[meta.task].metric} "
        print(f"{best}: {what}{100 * meta.accuracy:.1f} % of {of}, after epoch {meta.epoch}")


def _eval(args: argparse.Namespace) -> None:
    require_matplotlib()  # before the minutes of computing
    place = join(choose_device(args.device))
    try:  # torchrun's processes share the images, and the first one speaks for all
        with contextlib.redirect_stdout(io.StringIO()) if place.rank else contextlib.nullcontext():
            _tabulate(args, place)
    finally:
        leave()


def _tabulate(args: argparse.Namespace, place: Place) -> None:
    task = _task(args)
    curves: list[Curve] = []
    majorities: dict[str, float] = {}
    try:
        for path, name in zip(args.checkpoints, _names(args), strict=True):
            _curves(path, name, args, place, curves, majorities)
    finally:  # whatever goes wrong, what has been computed is not lost
        known = [curve for curve in curves if curve.accuracy]
        if known and place.rank == 0:
            where = Path(args.out or Path(args.checkpoints[0]).with_name("resolution.png"))
            constant = _majority_rows(majorities)
            print(table(known, task.metric, constant))
            print(f"plot: {plot(known, where, task.metric, constant)}")
            rows = [*known, *(Curve(row, None, dict.fromkeys(known[0].accuracy, x)) for row, x in constant.items())]
            save_curves(rows, where.with_suffix(".json"))
            print(conclusion(known))
    refused = [f"{curve.name}: {reason}" for curve in curves for reason in curve.refused.values()]
    if refused and not known:
        raise ValueError("; ".join(refused))
    print("".join(f"{line}\n" for line in [*refused, *_chosen(args)]), end="")


def _task(args: argparse.Namespace) -> Task:
    """Of all checkpoints, whose figures stand in one table.

    Raises:
        ValueError: they have several.
    """
    tasks = {read_checkpoint(path)[2].task: path for path in args.checkpoints}
    if len(tasks) > 1:
        found = ", ".join(f"{path} is {name}" for name, path in tasks.items())
        raise ValueError(f"accuracies of different tasks do not stand in one table: {found}")
    return TASKS[next(iter(tasks))]


def _majority_rows(majorities: dict[str, float]) -> dict[str, float]:
    """Rows of the table for each checkpoint's majority; one for all where they agree."""
    values = {*majorities.values()}
    return {"majority": values.pop()} if len(values) == 1 else {f"{k}, majority": v for k, v in majorities.items()}


def _chosen(args: argparse.Namespace) -> list[str]:
    """What flatters the table: checkpoints that were chosen by their accuracy on the images of the table."""
    chosen = [path for path in args.checkpoints if (meta := read_checkpoint(path)[2]).best and meta.split == "test"]
    if not chosen or args.data or args.root:
        return []
    return [f"chosen among its epochs by accuracy on this test split, which flatters it: {', '.join(chosen)}"]


def _report(args: argparse.Namespace) -> None:
    print(write_report(args.runs, args.out))


def _export(args: argparse.Namespace) -> None:
    done = export_model(args.checkpoint, args.out, args.size, args.opset, args.frames)
    height, width = done.size
    clip = "" if done.frames is None else f"{done.frames} frames of "
    checked = (
        f"not checked: {INSTALL}" if done.difference is None else f"difference {done.difference:.0e} of the largest"
    )
    print(f"{done.path}: {clip}{height} x {width} pixels, any batch; logits: {checked}")


def _convert(args: argparse.Namespace) -> None:
    done = convert_checkpoint(args.reference, args.out, args.model, args.arg)
    print(f"{done.path}: {done.tensors} tensors of {done.model}")
    if done.unused:
        print(f"left out, the reference does not use them: {', '.join(done.unused)}")
    settings = "".join(f", {name}={value!r}" for name, value in done.args.items())
    print(f"load it with timm.create_model({done.model!r}{settings}, checkpoint_path={str(done.path)!r})")


def _watch(args: argparse.Namespace) -> None:
    def show(seconds: float, top: Top) -> None:
        classes = "  ".join(f"{name} {100 * p:.1f} %" for name, p in top)
        print(f"{seconds:8.2f} s  {classes}", flush=True)

    watch(args.checkpoint, args.video, show, args.every, args.top)


def _curves(
    path: str,
    name: str,
    args: argparse.Namespace,
    place: Place,
    curves: list[Curve],
    majorities: dict[str, float],
) -> None:
    """Append the curve of a checkpoint, or for videos one for each of args.frames, and fill it size by size.

    Of a multi-label checkpoint also enter what its majority is worth on the data, whatever the size.
    """
    model, config, meta = load_model(path)
    data = config.data
    source = replace(data, name=args.data or data.name)
    if (source.sampling() is None) != (data.sampling() is None):
        raise ValueError(
            f"{path} was trained on {data.name}, and {source.name} is not of the same kind: images or videos"
        )
    if args.frames and data.sampling() is None:
        raise ValueError(f"--frames is for videos, and {path} was trained on the images of {data.name}")
    root = args.root if args.root or args.data else data.root
    limit = data.test_limit if args.limit is None else args.limit
    lists = data.lists if source.name in LISTED_DATASETS else None
    where = {"lists": lists, "official_split": data.split, "reading": data.reading()}
    dataset = build_dataset(source.name, root, "test", limit=limit, **where)
    if task_of(dataset.labels).name != meta.task:
        raise ValueError(f"{path} is {meta.task}, and the data of {source.name} is {task_of(dataset.labels).name}")
    order = list(range(len(meta.classes)))
    if list(dataset.classes) != meta.classes:
        order = order_by_name(dataset.classes, meta.classes)
        if order is None:
            odd = difference(meta.classes, dataset.classes, "the checkpoint", "the data")
            raise ValueError(f"{path} was trained on other classes than those of {source.name}: {odd}")
        model.register_forward_hook(lambda module, args, logits: logits[:, order])
    if meta.majority:
        majorities[name] = agreement([meta.majority[i] for i in order], dataset.labels)
    settings = {"batch_size": args.batch_size, "workers": args.workers, "skip_bad": args.skip_bad} | place._asdict()
    settings |= {"transforms": data.transforms()}
    sizes, trained_size = sorted(set(args.sizes)), config.stages[meta.stage].size
    for frames in sorted(set(args.frames or [data.frames])):
        sampling = data.sampling() and replace(data.sampling(), frames=frames)
        if sampling:
            print(f"{name}: {sampling.protocol()}", flush=True)
        row = f"{name}, {frames} frames" if args.frames else name
        for way in args.resample or [None]:
            try:
                variant = _resampled(model, way, trained_size)
            except ValueError as error:  # of this model alone
                print(f"{row}, {way}: {error}", flush=True)
                continue
            rows = {f"{row}, {way}" if way else row: None}
            if args.control and way in (None, (args.resample or [None])[0]):  # all ways are one at the trained size
                rows[f"{row}, control"] = trained_size
            for label, control in rows.items():
                accuracy, refused = {}, {}
                curves.append(Curve(label, trained_size, accuracy, refused))
                for size in sizes:
                    try:
                        accuracy |= evaluate_sizes(
                            variant, dataset, [size], sampling=sampling, control=control, **settings
                        )
                    except SizeRefused as error:
                        refused[size] = str(error)


def _resampled(model: torch.nn.Module, way: str | None, trained_size: int) -> torch.nn.Module:
    """The model, or a copy that goes another way to sizes that it was not trained at."""
    if way is None:
        return model
    if way in ("continuous", "fold") and not any(isinstance(module, S4ND) for module in model.modules()):
        if way == "continuous":  # what convolutions do at any size
            return model
        raise ValueError("left out: fold is for S4ND layers, of which it has none")
    model = copy.deepcopy(model)
    if way not in ("continuous", "fold"):
        hold_convolutions(model, trained_size)
    set_resample(model, way)
    return model


def _names(args: argparse.Namespace) -> list[str]:
    """The models' names; where two checkpoints have the same one, with the run directory, or else the whole path."""
    models = [read_checkpoint(path)[1].model.name for path in args.checkpoints]
    paths = [Path(path) for path in args.checkpoints]
    for where in ([path.parent.name for path in paths], args.checkpoints):
        names = [
            model if Counter(models)[model] == 1 else f"{model} ({place})"
            for model, place in zip(models, where, strict=True)
        ]
        if len(set(names)) == len(names):
            break
    return names


def _version() -> str:
    try:
        return version("s4nd")
    except PackageNotFoundError:  # a checkout that is on the path, but not installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
