"""All that a GPU has to show of S4ND, in one run of less than nine minutes, with torch, timm and einops alone.

    PYTHONPATH=. python tools/bench_gpu.py --out runs/bench_gpu
    python tools/bench_gpu.py --quick --device cpu

The first line needs no installation.

Correctness of every backend, algorithm and dtype; the layer against depthwise convolutions, FFTs and the memory's limit; the
generation of kernels and the programs that it starts; sequences against attention; models of images and clips against timm's
and torchvision's. Writes OUT.json after each row, and OUT.png where matplotlib is installed. What fails, and what there is no
time for, is an entry with its reason.

Times are medians. On CUDA `ms` is a run started by Python, and `graph ms` the device alone (a CUDA graph); each run finds the
device's cache overwritten.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from gpu import layer, models
from gpu.correct import correct
from gpu.launches import launches
from gpu.measure import bandwidth
from gpu.report import line, picture
from gpu.runner import run_section
from gpu.settings import Row, Section, Settings, quick

WHOLE = 500.0  # seconds of all sections together
# Each with the seconds that it may take; the last one has whatever is left of the whole.
SECTIONS: dict[str, tuple[Section, float]] = {
    "correct": (correct, 60),
    "layer": (layer.layer, 110),
    "generation": (layer.generation, 40),
    "launches": (launches, 35),
    "attention": (layer.attention, 25),
    "video": (models.video, 50),
    "images": (models.images, WHOLE),
}
LEAST = 10.0  # seconds with which a section is begun


def choose_settings(args: argparse.Namespace) -> Settings:
    """In the process of a section: asking for a GPU starts CUDA."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        torch.cuda.init()
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    return quick(torch.device(device)) if args.quick else Settings(torch.device(device))


def machine(settings: Settings) -> Iterator[Row]:
    """What measures."""

    def found() -> dict[str, Any]:
        on_gpu = settings.device.type == "cuda"
        name = (
            torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        )
        versions = {"torch": torch.__version__, "timm": timm.__version__, "cuda": torch.version.cuda if on_gpu else ""}
        return {"device": name, **versions, "bytes per second": bandwidth(settings)}

    yield Row("machine", "machine", found)


def main() -> None:
    """Measure section by section; print and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; all by default")
    parser.add_argument("--device", help="cuda where there is a GPU, else cpu")
    parser.add_argument("--seconds", type=float, default=WHOLE, help=f"of all sections together; {WHOLE:.0f}")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu"), help="path of the results, no suffix")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the tool itself, on a CPU too")
    args = parser.parse_args()
    if args.seconds <= 0:
        parser.error(f"--seconds must be positive, got {args.seconds}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = quick(torch.device("cpu")) if args.quick else Settings(torch.device("cpu"))
    plain = {k: v for k, v in asdict(settings).items() if k != "device"}
    report: dict[str, Any] = {"machine": {"device": "unknown"}, "settings": plain, "sections": {}}
    end = time.monotonic() + args.seconds
    reason = run_section(
        machine, partial(choose_settings, args), args.seconds, lambda of, who, values: report["machine"].update(values)
    )
    if reason:
        report["machine"]["reason"] = reason
    print(line("machine", "", report["machine"]), flush=True)
    for name in args.only:
        report["sections"][name] = measured(name, args, end - time.monotonic(), report)
        write(report, args.out)
    if problem := picture(report, Path(f"{args.out}.png")):
        print(problem)


def measured(name: str, args: argparse.Namespace, left: float, report: dict[str, Any]) -> dict[str, Any]:
    """One section's part of the report, which is written as it grows."""
    section, share = SECTIONS[name]
    part: dict[str, Any] = {"about": " ".join(section.__doc__.split()), "results": {}}
    report["sections"][name] = part
    print(f"\n{name}: {part['about']}", flush=True)
    if left < min(LEAST, args.seconds / 10):
        part["reason"] = f"left out: {max(left, 0):.0f} of {args.seconds:.0f} s were left"
        print(f"  {part['reason']}", flush=True)
        return part

    def done(of: str, contestant: str, values: dict[str, Any]) -> None:
        part["results"].setdefault(of, {})[contestant] = values
        write(report, args.out)
        print(line(of, contestant, values), flush=True)

    start = time.monotonic()
    reason = run_section(section, partial(choose_settings, args), min(share, left), done)
    part["seconds"] = time.monotonic() - start
    if reason:
        part["reason"] = reason
        print(f"  {reason}", flush=True)
    return part


def write(report: dict[str, Any], out: Path) -> None:
    """All that there is so far; a run that is killed leaves the file whole."""
    path = Path(f"{out}.json")
    beside = path.with_suffix(".json.tmp")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)


if __name__ == "__main__":
    main()
