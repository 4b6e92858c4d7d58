"""Files that a kill or a full disk cannot spoil."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Seconds: loader processes of a killed run, which share its lock, notice within 5 that it is gone.
PATIENCE = 15.0


def write_atomically(path: Path, content: bytes, before: Callable[[], None] = lambda: None) -> None:
    """Write a file so that a kill at any moment leaves the old content or the new, never a part.

    Args:
        before: called when the new content is on the disk, before it takes the old one's place.

    Raises:
        OSError: it cannot be written; names the file, and nothing is left of the attempt.
    """
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            before()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else writes into this folder, which is made if need be, as long as this lasts or the process lives.

    A process whose launcher was killed may go on training; a second one would write over its files.

    Raises:
        ValueError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        last = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= last:
                    raise ValueError(f"another process is training in {folder}: wait for it, or end it") from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system inside name this file: those of writing, such as a full disk, name none."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
