"""Kill a training at random moments until it ends, and compare its weights with those of one that nothing ended.

    python tools/kill_runs.py configs/photos/s4nd_iso_tiny.yaml --kills 100 --processes 2 data.train_limit=128

Every start is the same command with resume=auto and save_every_steps=1. What is killed, one process or the whole run, with
SIGKILL or SIGTERM, and when, is drawn; of several processes torchrun is started. Exit status: 0 if all weights are equal bit
for bit, else 1.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from s4nd.train.state import STATE_FILE


def command(config: str, processes: int, overrides: list[str], out: Path) -> list[str]:
    """Of a training in `out`, begun or continued."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "-m"]
    return [
        *launcher,
        "s4nd.train",
        config,
        *overrides,
        f"out={out}",
        "resume=auto",
        "save_every_steps=1",
        "device=cpu",
    ]


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(child) for child in found.split()]


def run(line: list[str], kills: int, rng: random.Random, longest: float) -> int:
    """Start the command until it ends by itself; returns how often it was killed."""
    killed = 0
    while True:
        process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            said = process.communicate(timeout=rng.uniform(0, longest) if killed < kills else None)[1]
        except subprocess.TimeoutExpired:
            number, killed = rng.choice([signal.SIGKILL, signal.SIGTERM]), killed + 1
            below = children(process.pid)  # of torchrun, each in a session of its own
            for pid in [rng.choice(below)] if below and rng.random() < 0.5 else [process.pid, *below]:
                os.kill(pid, number)
            said = process.communicate()[1]
            print(f"kill {killed}: {number.name}, status {process.returncode}", flush=True)
            continue
        if process.returncode == 0:
            return killed
        if killed >= kills:
            raise RuntimeError(said.decode()[-2000:])


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights, and their averages, at the end of a run."""
    state = torch.load(out / STATE_FILE, weights_only=True)
    return {**state["model"], **{f"ema.{key}": value for key, value in (state["ema"] or {}).items()}}


def main() -> int:
    """Run both, and say whether they are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_intermixed_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, name) for name in ("left", "killed")]
        lines = [command(args.config, args.processes, args.overrides, out) for out in outs]
        run(lines[0], 0, random.Random(args.seed), args.longest)
        killed = run(lines[1], args.kills, random.Random(args.seed), args.longest)
        one, other = map(weights, outs)
        equal = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    print(f"killed {killed} times: the weights are {'equal bit for bit' if equal else 'NOT equal'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
