"""The command `s4nd`: train, and evaluate at several resolutions."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .checkpoint import load_model, read_checkpoint
from .config import load_config
from .data import BadImage, build_dataset
from .device import choose_device
from .engine import DivergedError, train
from .resolution import Curve, conclusion, evaluate_sizes, plot, require_matplotlib, table

USER_ERRORS = (ValueError, KeyError, OSError, ImportError, BadImage, DivergedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 after an error that is the user's to mend, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        # str of a KeyError is the repr of its message
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"s4nd: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("s4nd: interrupted; resume=auto continues a training", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s4nd", description="Train S4ND models; evaluate them at unseen resolutions.")
    parser.add_argument("--version", action="version", version=f"s4nd {_version()}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="train|eval")

    training = commands.add_parser("train", parents=[common], help="train a model", description="Train a model.")
    training.add_argument("config", help="YAML file, such as configs/photos/s4nd_iso_tiny.yaml")
    training.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=0.01 or resume=auto")
    training.set_defaults(command=_train)

    testing = commands.add_parser("eval", parents=[common], help="accuracy at several resolutions, as table and plot")
    testing.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="such as runs/NAME/best.safetensors")
    testing.add_argument("--sizes", nargs="+", type=int, required=True, help="pixels per side, such as 16 24 32 48")
    testing.add_argument("--data", metavar="NAME", help="data set; default: the checkpoint's")
    testing.add_argument("--root", help="its folder or file; default: the checkpoint's")
    testing.add_argument("--limit", type=int, help="use this many test images at most")
    testing.add_argument("--batch-size", type=int, default=32, help="images at a time; more is faster on a GPU")
    testing.add_argument("--workers", type=int, default=0, help="loader processes")
    testing.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    testing.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    testing.add_argument("--out", help="the plot; default: resolution.png beside the first checkpoint")
    testing.set_defaults(command=_eval)
    return parser


def _train(args: argparse.Namespace) -> None:
    folder = train(load_config(args.config, args.overrides))
    if os.environ.get("RANK", "0") == "0":  # one process speaks for all of torchrun's
        best = folder / "best.safetensors"
        _, _, meta = read_checkpoint(best)
        print(f"{best}: {100 * meta.accuracy:.1f} % after epoch {meta.epoch}")


def _eval(args: argparse.Namespace) -> None:
    require_matplotlib()  # before the minutes of computing
    device = choose_device(args.device)
    curves = [_curve(path, name, args, device) for path, name in zip(args.checkpoints, _names(args), strict=True)]
    print(table(curves))
    print(f"plot: {plot(curves, args.out or Path(args.checkpoints[0]).with_name('resolution.png'))}")
    print(conclusion(curves))


def _curve(path: str, name: str, args: argparse.Namespace, device) -> Curve:
    model, config, meta = load_model(path)
    data = config.data
    root = args.root if args.root or args.data else data.root
    limit = data.test_limit if args.limit is None else args.limit
    dataset = build_dataset(args.data or data.name, root, "test", limit=limit)
    if list(dataset.classes) != meta.classes:
        raise ValueError(f"{path} was trained on the classes {meta.classes}, the data has {list(dataset.classes)}")
    settings = {"batch_size": args.batch_size, "workers": args.workers, "device": device, "skip_bad": args.skip_bad}
    accuracy = evaluate_sizes(model, dataset, sorted(set(args.sizes)), **settings)
    return Curve(name, config.stages[meta.stage].size, accuracy)


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
