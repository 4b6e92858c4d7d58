"""The command `s4nd`: train, evaluate at several resolutions, export."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from s4nd.nn.resolution import MODEL_RESAMPLE
from s4nd.ops import BackendError

from .checkpoint import read_checkpoint
from .commands import doctor
from .commands.compare import Comparison, compare
from .commands.convert import convert_checkpoint
from .commands.export import INSTALL, export_model
from .commands.hub import export_hub
from .commands.models import list_registered, table
from .commands.report import write_report
from .commands.watch import Top, watch
from .config import load_config
from .device import choose_device
from .engine import DivergedError, train
from .processes import join, leave
from .requests import Interrupted
from .resolution import require_matplotlib
from .task import ACCURACY, TASKS

USER_ERRORS = (ValueError, KeyError, OSError, ImportError, BackendError, DivergedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or the command's own, or 2 after an error of the user's to mend, or 128 + n
    after signal n."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args) or 0
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s4nd", description="Train S4ND models; evaluate them at unseen resolutions.")
    parser.add_argument("--version", action="version", version=f"s4nd {_version()}")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, (add_arguments, command, what) in COMMANDS.items():
        subparser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(command=command)
        add_arguments(subparser)
    return parser


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, such as configs/photos/s4nd_iso_tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=0.01 or resume=auto")


def _train(args: argparse.Namespace) -> None:
    folder = train(load_config(args.config, args.overrides))
    if os.environ.get("RANK", "0") == "0":  # one process speaks for all of torchrun's
        best = folder / "best.safetensors"
        _, _, meta = read_checkpoint(best)
        of = "the test split, which chose it" if meta.split == "test" else "the validation split of the training images"
        metric = TASKS[meta.task].metric
        what = "" if metric is ACCURACY else f"{metric.name} "
        print(f"{best}: {what}{metric.show(meta.accuracy)} of {of}, after epoch {meta.epoch}")


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    parser.add_argument("--sizes", nargs="+", type=int, required=True, help="pixels per side, such as 16 24 32 48")
    parser.add_argument(
        "--frames", nargs="+", type=int, help="of a clip of unchanged duration, such as 8 16; videos only"
    )
    parser.add_argument(
        "--resample",
        nargs="+",
        choices=MODEL_RESAMPLE,
        help="resampling methods at other sizes, a row each; default: the checkpoint's. hold, dilate and "
        "hold+dilate (the first layer held, the rest dilated) are for convolutions too",
    )
    parser.add_argument(
        "--control",
        action="store_true",
        help="also a row of the same images resized to the trained size, and run there; restored ones are resized back",
    )
    parser.add_argument(
        "--noise-density",
        action="store_true",
        help="noise of one density: its deviation is in proportion to the size, at the trained one the trained one",
    )
    parser.add_argument("--data", metavar="NAME", help="data set; default: the checkpoint's")
    parser.add_argument("--root", help="its folder or file; default: the checkpoint's")
    parser.add_argument("--limit", type=int, help="use this many test images or videos at most")
    parser.add_argument("--batch-size", type=int, default=32, help="images or clips at a time; more is faster on a GPU")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--out", help="the plot; default: resolution.png beside the first checkpoint")


def _eval(args: argparse.Namespace) -> None:
    require_matplotlib()  # before the minutes of computing
    place = join(choose_device(args.device))
    try:  # torchrun's processes share the images, and the first one speaks for all
        with contextlib.redirect_stdout(io.StringIO()) if place.rank else contextlib.nullcontext():
            compare(Comparison(**{f.name: getattr(args, f.name) for f in fields(Comparison)}), place)
    finally:
        leave()


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, such as runs/photos/s4nd_iso_tiny")
    parser.add_argument("--out", default="report.html", help="the HTML file; default: report.html")


def _report(args: argparse.Namespace) -> None:
    print(write_report(args.runs, args.out))


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    parser.add_argument("out", metavar="OUT", nargs="?", help="model.onnx, or model.pt2 for torch.export")
    parser.add_argument("--hub", metavar="DIR", help="instead: a new folder in the hub's layout, for timm; any size")
    parser.add_argument("--size", nargs="+", type=int, help="pixels per side, or height and width; default: trained")
    parser.add_argument("--frames", type=int, help="of a clip of unchanged duration; default: trained; videos only")
    parser.add_argument("--opset", type=int, help="ONNX opset; default: the exporter's")


def _export(args: argparse.Namespace) -> None:
    if (args.out is None) == (args.hub is None):
        raise ValueError("export writes one of OUT (model.onnx or model.pt2) and --hub DIR")
    if args.hub is not None:
        given = [f"--{name}" for name in ("size", "frames", "opset") if getattr(args, name) is not None]
        if given:
            raise ValueError(f"--hub is for every size; {', '.join(given)} is for OUT")
        folder = export_hub(args.checkpoint, args.hub)
        print(
            f"{folder}: load it with timm.create_model({f'local-dir:{folder}'!r}, pretrained=True) after import s4nd.models"
        )
        return
    done = export_model(args.checkpoint, args.out, args.size, args.opset, args.frames)
    height, width = done.size
    clip = "" if done.frames is None else f"{done.frames} frames of "
    checked = (
        f"not checked: {INSTALL}" if done.difference is None else f"difference {done.difference:.0e} of the largest"
    )
    print(f"{done.path}: {clip}{height} x {width} pixels, any batch; {done.output}: {checked}")


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REFERENCE", help="its .ckpt, .pt, .pth or .safetensors")
    parser.add_argument("out", metavar="OUT", help="the .safetensors file to write, for timm")
    parser.add_argument("--model", metavar="NAME", required=True, help="such as s4nd_convnext_tiny")
    parser.add_argument("--arg", nargs="+", action="extend", default=[], metavar="key=value", help="of the model")


def _convert(args: argparse.Namespace) -> None:
    done = convert_checkpoint(args.reference, args.out, args.model, args.arg)
    print(f"{done.path}: {done.tensors} tensors of {done.model}")
    if done.unused:
        print(f"left out, the reference does not use them: {', '.join(done.unused)}")
    settings = "".join(f", {name}={value!r}" for name, value in done.args.items())
    print(f"load it with timm.create_model({done.model!r}{settings}, checkpoint_path={str(done.path)!r})")


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="print every N-th answer, and the last")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="print the K likeliest classes")


def _watch(args: argparse.Namespace) -> None:
    def show(seconds: float, top: Top) -> None:
        classes = "  ".join(f"{name} {100 * p:.1f} %" for name, p in top)
        print(f"{seconds:8.2f} s  {classes}", flush=True)

    watch(args.checkpoint, args.video, show, args.every, args.top)


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="names that fit one, such as '*convnext*'; default: all"
    )
    parser.add_argument("--pretrained", action="store_true", help="only those whose weights ship with s4nd")


def _models(args: argparse.Namespace) -> None:
    print(table(list_registered(args.patterns, args.pretrained)))


def _version() -> str:
    try:
        return version("s4nd")
    except PackageNotFoundError:  # a checkout that is on the path, but not installed
        return "(not installed)"


COMMANDS = {  # arguments, what they call, what that does
    "train": (_train_arguments, _train, "train a model"),
    "eval": (_eval_arguments, _eval, "accuracy, or PSNR, at several resolutions, as table and plot"),
    "report": (_report_arguments, _report, "what some runs did, as one HTML file"),
    "export": (
        _export_arguments,
        _export,
        "a file that runs without s4nd, at one size, or a folder for timm and the hub",
    ),
    "convert": (_convert_arguments, _convert, "weights of the reference implementation as ours"),
    "watch": (_watch_arguments, _watch, "the running answer of a causal video model while a file decodes"),
    "models": (_models_arguments, _models, "names, parameters, sizes and weights of the models, for timm.create_model"),
    "doctor": (doctor.add_arguments, doctor.run, "try what is installed here; exit status 1 if something is wrong"),
}


if __name__ == "__main__":
    sys.exit(main())
