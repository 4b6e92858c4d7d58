"""A probe in a process of its own, with an end: foreign code may print, hang or die there."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PROBE = Path(__file__).with_name("probe.py")


class Finding(NamedTuple):
    """One line: the name of a thing; "ok", "none" or "FAULT"; and what is to be said of it."""

    name: str
    state: str
    text: str


class Trial:
    """A probe in a process of its own, which has begun.

    Args:
        seconds: it is killed, and what it started, if it takes longer from when it is waited for.
        probe: a function of a file that can be run by itself, see probe.py.
        arguments: of the probe.
    """

    def __init__(self, seconds: float, probe: Callable[..., list], *arguments: str):
        self.seconds, self.name = seconds, probe.__name__
        self.folder = tempfile.TemporaryDirectory(prefix="s4nd-doctor-", ignore_cleanup_errors=True)
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        with open(Path(self.folder.name, "said"), "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, PROBE, path, probe.__code__.co_filename, probe.__name__, *arguments],
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
        answers, trying = [], self.name
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
