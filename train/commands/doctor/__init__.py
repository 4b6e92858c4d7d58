"""`s4nd doctor`: what is here, tried: versions, devices, compilers, backends and the packages of every extra, a line each.

Everything is tried in processes of their own (trial.py) that get a limited time, so that no package that hangs, prints or
kills its process takes the others' lines along.

What is absent is a line and no fault, if nothing says that it should be here: an extra that is not installed, KeOps without
a compiler, Triton without a CUDA device. A fault is what should work here and does not: a required package that is missing
or too old, an installed package that does not fit or fails when it is used, a backend that gives wrong numbers.
"""

import argparse
import os
import platform
import sys
from collections import deque
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, metadata

from packaging.requirements import Requirement

from s4nd.ops import BACKENDS as _BACKENDS

from . import computing as _computing
from .packages import packages as _packages
from .trial import Finding, Trial

__all__ = ["Finding", "Trial", "add_arguments", "findings", "run"]

_SECONDS = 180  # for a probe: the heaviest packages take 20 to be imported on a slow disk
_COMPILING = 600  # for a backend, which may compile: two formulas of KeOps take 25 on a busy machine of two cores
_AHEAD = min(4, os.cpu_count() or 1)


def findings() -> Iterator[Finding]:
    """Everything, in one order; up to AHEAD processes run at once."""
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix} on {platform.platform()}")
    plan, running = deque(_plan()), deque[Trial]()
    try:
        while plan or running:
            while plan and len(running) < _AHEAD:
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
        (_SECONDS, _computing.models),
        (_SECONDS, _packages, *required),  # in one process: they belong together, and are there
        (_SECONDS, _computing.compilers),
        (_COMPILING, _computing.devices),  # backend="auto" may try Triton
        *((_COMPILING, _computing.backend, name) for name in _BACKENDS if name != "auto"),
        *((_SECONDS, _packages, package) for package in (*optional, *_of_use())),
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
        for r in requirements if extra not in ("dev", "docs") else ():  # what only the tests and the site use
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
