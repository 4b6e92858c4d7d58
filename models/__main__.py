"""`python -m s4nd.models SCRIPT [argument ...]`: what `python SCRIPT` does, with S4ND's models registered.

timm's scripts (validate.py, inference.py, benchmark.py, onnx_export.py, ...) know by name what is registered in their process
and import nothing else; so registering first is all that they need. The import of this package, which Python has made when it
comes here, does it. A script that starts others, as bulk_runner.py does, must start them in the same way.
"""

import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

USAGE = """usage: python -m s4nd.models SCRIPT [argument ...]

Run the Python file SCRIPT as `python SCRIPT [argument ...]` does, with S4ND's models registered with timm."""


def main(argv: Sequence[str]) -> int:
    """Run the script argv[0] with the arguments after it, whatever they are.

    Returns:
        0 after the script's last line (it may exit by itself), 2 if there is no such script.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        script = _script(argv)
    except ValueError as error:
        print(f"python -m s4nd.models: error: {error}", file=sys.stderr)
        return 2
    sys.argv = [*argv]
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):  # Python 3.10 has no safe_path
        sys.path[0] = os.path.dirname(os.path.realpath(script))  # `python -m` has put the working directory there
    runpy.run_path(script, run_name="__main__")
    return 0


def _script(argv: Sequence[str]) -> str:
    """argv[0], which Python can compile.

    Raises:
        ValueError: it is not there, or no such file.
    """
    if not argv:
        raise ValueError(f"needs a script to run, got none\n{USAGE}")
    script = argv[0]
    if not os.path.isfile(script):
        what = "a folder" if os.path.isdir(script) else "no file"
        raise ValueError(f"the first argument must be the path of a Python file, got {script!r}, which is {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come when the script runs
            compile(Path(script).read_bytes(), script, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:  # ValueError: null bytes, before Python 3.12
        raise ValueError(f"{script} is not a Python file that can be run: {error}") from None
    return script


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
