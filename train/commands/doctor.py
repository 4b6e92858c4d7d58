"""`s4nd doctor`: what is here, tried: versions, devices, compilers, backends and the packages of every extra, a line each.

Everything is tried in processes of their own (probes.py) that get a limited time, so that no package that hangs, prints or
kills its process takes the others' lines along.

What is absent is a line and no fault, if nothing says that it should be here: an extra that is not installed, KeOps without
a compiler, Triton without a CUDA device. A fault is what should work here and does not: a required package that is missing
or too old, an installed package that does not fit or fails when it is used, a backend that gives wrong numbers.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from s4nd.ops import BACKENDS

from . import probes

SECONDS = 180  # for a probe: the heaviest packages take 20 to be imported on a slow disk
COMPILING = 600  # for a backend, which may compile: two formulas of KeOps take 25 on a busy machine of two cores


class Finding(NamedTuple):
    """One line: the name of a thing; "ok", "none" or "FAULT"; and what is to be said of it."""

    name: str
    state: str
    text: str


class Trial:
    """A probe in a process of its own, which has begun.

    Args:
        seconds: it is killed, and what it started, if it takes longer from when it is waited for.
        probe: its name in probes.PROBES, and its arguments.
    """

    def __init__(self, seconds: float, *probe: str):
        self.seconds, self.probe = seconds, probe
        self.folder = tempfile.TemporaryDirectory(prefix="s4nd-doctor-", ignore_cleanup_errors=True)
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        with open(Path(self.folder.name, "said"), "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, probes.__file__, path, *probe],
                cwd=self.folder.name,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the compilers that it starts can be killed with it
            )

    def findings(self) -> list[Finding]:
        """What it found; where it broke off, the last is a fault that says how."""
        try:
            status = self.process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            status = None
        answers, trying = [], self.probe[0]
        file = Path(self.folder.name, "answers")
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            trying, *found = json.loads(line)
            answers += [Finding(trying, *found)] if found else []
        if status != 0:
            answers.append(Finding(trying, "FAULT", self._end(status)))
        return answers

    def _end(self, status: int | None) -> str:
        if status is None:
            return f"no answer in {self.seconds:g} s"
        said = Path(self.folder.name, "said").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((f": {line.strip()}" for line in reversed(said) if line.strip()), "")
        if status < 0:
            return f"killed by {signal.Signals(-status).name}{last}"
        return f"ended with exit code {status}{last}"

    def close(self) -> None:
        """Nothing of it is left."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.folder.cleanup()


def findings() -> Iterator[Finding]:
    """Everything, in one order; some processes run ahead."""
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix} on {platform.platform()}")
    ahead, running = os.cpu_count() or 1, deque()
    plan = deque(_plan())
    try:
        while plan or running:
            while plan and len(running) < ahead:
                running.append(Trial(*plan.popleft()))
            yield from running[0].findings()
            running.popleft().close()
    finally:
        for trial in running:
            trial.close()


def _plan() -> list[tuple]:
    """(seconds, probe, arguments) of every probe."""
    required, optional = _requirements()
    return [
        (SECONDS, "models"),
        (SECONDS, "packages", *required),  # in one process: they belong together, and are there
        (SECONDS, "compilers"),
        (COMPILING, "devices"),  # backend="auto" may try Triton
        *((COMPILING, "backend", name) for name in BACKENDS if name != "auto"),
        *((SECONDS, "packages", package) for package in (*optional, *_of_use())),
    ]


def _of_use() -> list[str]:
    """What no extra gives: Triton comes with torch, decord under one of two names is a rival in tools/bench_video.py."""
    decord = "decord" if any(distributions(name="decord")) else "decord2"
    return [
        "triton>=3.3: it comes with torch's builds for CUDA",
        f"{decord}: pip install decord2, for tools/bench_video.py",
    ]


def _requirements() -> tuple[list[str], list[str]]:
    """What the installed distribution says: required packages, and those of the extras with the way to install them."""
    try:
        about = metadata("s4nd")
    except PackageNotFoundError:  # a checkout that is on the path, but not installed: that it runs must do
        return [], []
    requirements = [Requirement(line) for line in about.get_all("Requires-Dist") or ()]
    required = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    seen = {r.name for r in required}
    optional = []
    for extra in about.get_all("Provides-Extra") or ():
        for r in requirements if extra != "dev" else ():  # what only the tests use
            if r.name not in seen and r.marker and r.marker.evaluate({"extra": extra}):
                seen.add(r.name)
                optional.append(f"{r.name}{r.specifier}: pip install 's4nd[{extra}]'")
    return [f"{r.name}{r.specifier}" for r in required], optional


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: everything is tried."""


def run(args: argparse.Namespace) -> int:
    """Print the findings; the exit status is 1 if there is a fault among them."""
    faults = 0
    for finding in findings():
        faults += finding.state == "FAULT"
        print(f"{finding.state:5}  {finding.name}: {finding.text}", flush=True)
    print(f"{faults} {'fault' if faults == 1 else 'faults'}")
    return int(faults > 0)
