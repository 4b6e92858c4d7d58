"""Files that a kill or a full disk cannot spoil."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
def naming(path: Path) -> Iterator[None]:
    """Errors of the system inside name this file: those of writing, such as a full disk, name none."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
