"""Runs each section in a process of its own, with a deadline: whatever ends one ends neither the others nor the report."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from gpu.measure import first_line
from gpu.settings import Section, Settings

Results = dict[
    str, dict[str, dict[str, Any]]
]  # what is compared: contestant: figures, or {"reason": why there are none}

# Forked, so that what is imported is there; nothing may have started CUDA, or threads that compute, before.
FORK = multiprocessing.get_context("fork")
GRACE = 5.0  # seconds to end in


def run_section(
    section: Section, make_settings: Callable[[], Settings], seconds: float, done: Callable[[str, str, dict], None]
) -> str | None:
    """Why a section did not come to its end, None if it did.

    Args:
        make_settings: called in the section's process, which may use the device.
        seconds: until it is ended.
        done: is told of each row: what is compared, the contestant, and its figures or the reason why there are none.
    """
    deadline = time.monotonic() + seconds
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_work, args=(section, make_settings, theirs), daemon=False)
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            message = ours.recv()
            if message is None:
                return None
            if isinstance(message, str):
                return message
            done(*message)
        return f"ended after {seconds:.0f} s, its share of the time; what is left out was not measured"
    except EOFError:
        process.join(GRACE)
        return f"its process ended with status {process.exitcode}"
    finally:
        ours.close()
        process.join(GRACE if time.monotonic() < deadline else 0.1)
        if process.is_alive():
            process.kill()
            process.join()


def _work(section: Section, make_settings: Callable[[], Settings], theirs: Connection) -> None:
    """In the process of a section: a row that fails is a reason, and the next one follows."""
    try:
        for of, contestant, measure in section(make_settings()):
            try:
                values = measure()
            except Exception as error:  # out of memory, a backend that cannot run, anything
                values = {"reason": first_line(error)}
                error.__traceback__ = None  # it holds tensors
            theirs.send((of, contestant, values))
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        theirs.send(None)
    except Exception as error:
        theirs.send(first_line(error))
