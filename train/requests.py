"""What is asked of a run from outside while it trains: to save its state, or to save it and stop; agreed on by all processes.

SIGTERM, which schedulers and torchrun send before they kill, asks to stop; SIGUSR1, as of `sbatch --signal`, to save; and so
does the clock. A process must not act alone, since the others would wait for it in the next step.
"""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed as dist

SAVE, STOP = 1, 2
SIGNALS = {name: wish for name, wish in (("SIGTERM", STOP), ("SIGUSR1", SAVE)) if hasattr(signal, name)}


class Interrupted(RuntimeError):
    """The run was asked to stop, and has saved its state."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Requests:
    """Listens while it is entered.

    Args:
        minutes: of training between two wishes to save; None for never.
    """

    def __init__(self, minutes: float | None = None):
        self.seconds = None if minutes is None else 60 * minutes
        self.saved = time.monotonic()
        self.wish, self.signal_number = 0, int(signal.SIGTERM)
        self.group: Any = None  # of processes
        self.pending: Any = None  # the answer of the step before, with its tensor

    def __enter__(self) -> "Requests":
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # no other may
            self.before = {name: signal.signal(getattr(signal, name), self._hear) for name in SIGNALS}
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")  # of the CPU, whatever computes: nothing waits for the device
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for name, handler in self.before.items():
            signal.signal(getattr(signal, name), handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.wish = max(self.wish, SIGNALS[signal.Signals(number).name])
        if SIGNALS[signal.Signals(number).name] == STOP:
            self.signal_number = number

    def agreed(self) -> int:
        """0, SAVE or STOP: the strongest wish of any process; to be called by all of them after each step.

        Of several processes it is what was known at the step before: the question is asked in the background, and nobody
        waits for the answer.
        """
        if self.seconds is not None and time.monotonic() - self.saved >= self.seconds:
            self.wish = max(self.wish, SAVE)
        if self.group is None:
            return self.wish
        answer = 0
        if self.pending is not None:
            work, wish = self.pending
            work.wait()
            answer = int(wish)
        wish = torch.tensor(self.wish)
        self.pending = dist.all_reduce(wish, dist.ReduceOp.MAX, self.group, async_op=True), wish
        return answer

    def done(self) -> None:
        """The state is saved, in all processes. A wish that came meanwhile is served by it, but for one to stop."""
        if self.pending is not None:
            self.pending[0].wait()
            self.pending = None
        self.saved = time.monotonic()
        self.wish = self.wish if self.wish == STOP else 0
