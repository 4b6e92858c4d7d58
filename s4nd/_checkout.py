"""What git leaves of the links s4nd/models and s4nd/train where it makes none, as on Windows by default: files with a path in
them, which Python passes over. Nothing would then be said but that there is no module s4nd.models."""

import os
from importlib.util import find_spec
from pathlib import Path

ADVICE = """{link} is a file: in this checkout git has made no symbolic links, as on Windows without developer mode.
Either let it make them: turn on developer mode, then in the checkout
    git config core.symlinks true
    git checkout -- s4nd/models s4nd/train
or install s4nd, which needs no links: pip install -e . in the checkout, or a wheel, or git+https elsewhere."""


def check_links(package: Path) -> None:
    """Where the folder s4nd, `package`, has a file in place of a link, Python must find the linked folder in another way, as in
    an editable installation.

    Raises:
        ImportError: it does not; with what to do.
    """
    for name in ("models", "train"):
        if (package / name).is_file() and not _is_found(f"{package.name}.{name}", package.parent / name):
            raise ImportError(ADVICE.format(link=package / name))


def _is_found(module: str, folder: Path) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.origin is not None and os.path.samefile(Path(spec.origin).parent, folder)
