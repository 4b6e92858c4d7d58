"""Images per second of a training in several processes against one, each of one thread.

    python tools/bench_processes.py configs/imagenette/s4nd_convnext_micro.yaml data.root=DIR
    python tools/bench_processes.py configs/photos/s4nd_iso_tiny.yaml --processes 2 --steps 12 --rounds 5

The same config, and so the same batch of all processes together, is begun in turns with one process and with several, and ended
after `--steps` steps; the images per second are those of steps.jsonl, without its first record, which has the time to begin.
The ratio is the median over the rounds. Prints a Markdown table, and writes OUT.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench_report import RATIO, markdown

LOG_EVERY = 2  # steps between two records


def images_per_second(config: str, overrides: list[str], processes: int, steps: int) -> float:
    """Of one run that is ended after so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "s4nd.train", config, *overrides, f"out={folder}", f"log_every={LOG_EVERY}", "device=cpu"]
        run = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        records: list[dict] = []
        try:
            while len(records) * LOG_EVERY < steps:
                if run.poll() is not None:
                    raise SystemExit(f"the run ended after {len(records) * LOG_EVERY} steps: it must make {steps}")
                try:
                    run.wait(0.2)
                except subprocess.TimeoutExpired:
                    records = _records(Path(folder, "steps.jsonl"))
        finally:
            run.terminate()
            run.wait()
    return median(record["images_per_second"] for record in records[1:])


def _records(path: Path) -> list[dict]:
    """Those that are written whole."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_processes"))
    args = parser.parse_intermixed_args()
    rounds = []
    for _ in range(args.rounds):
        rounds.append([images_per_second(args.config, args.overrides, n, args.steps) for n in (1, args.processes)])
    one, several = (median(column) for column in zip(*rounds, strict=True))
    names = "1 process", f"{args.processes} processes"
    ratio = median(b / a for a, b in rounds)
    row = {names[0]: one, names[1]: several, f"{names[1]}{RATIO}{names[0]}": ratio}
    print(markdown(f"images/s, {Path(args.config).stem}", {"training": row}))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"rounds": rounds, **row}, indent=2) + "\n")


if __name__ == "__main__":
    main()
