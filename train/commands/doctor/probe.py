"""A file that is run by itself, in a process of its own: it runs a probe of another file, and writes down what that says.

    python probe.py SEARCH_PATH FILE PROBE [ARGUMENT ...]

A probe is a function of text that gives a list of things to check, (name, check). A check returns what is to be said of its
thing, begun with "none: " if that is not here and need not be; it raises if something that should work does not. The working
directory is an empty folder; the file `answers` in it gets a line of JSON before each check, [name], and one after it, [name,
state, text], where state is "ok", "none" or "FAULT".
"""

import json
import runpy
import sys


def _main(path: str, file: str, probe: str, *arguments: str) -> None:
    """Search modules where the asking process does, and not in the folder of this file."""
    sys.path[:] = json.loads(path)
    with open("answers", "w", encoding="utf-8") as answers:
        for name, check in runpy.run_path(file)[probe](*arguments):
            print(json.dumps([name]), file=answers, flush=True)
            state = "ok"
            try:
                text = check()
            except Exception as error:
                state, text = "FAULT", f"{type(error).__name__}: {error}"
            if text.startswith("none: "):
                state, text = "none", text.removeprefix("none: ")
            print(json.dumps([name, state, " ".join(text.split())]), file=answers, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
