"""Breaks one line of the product at a time, and reports which breaks no test notices.

    python tools/mutate.py                        # every entry of tests/mutations.yaml, each against its own tests
    python tools/mutate.py --only "ema never updated" --all-tests

An entry says what to break: `name`, `file`, the text `old` (it must occur exactly once) and `new`, what it `breaks` in words,
and the `tests` to run (files or ids, so few that they take seconds). All this happens in a copy of the working tree; a folder
`shared` beside the tree is linked beside the copy. Exit status: 0 all were noticed, 1 some were not, 2 the list does not fit
the tree or the tests fail without a break.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist", "site")
# What takes most of the time of a small test. It is imported once: each run is a fork, which imports the product anew.
LIBRARIES = ("torch", "timm", "torchvision", "omegaconf", "safetensors.torch", "torch.utils.tensorboard")
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider"]
LONGEST = 600  # seconds of a run; a break may leave a loop without an end
VERDICTS = {pytest.ExitCode.OK: "SURVIVED", pytest.ExitCode.TESTS_FAILED: "killed", -signal.SIGALRM: "killed (no end)"}


@dataclass(frozen=True)
class Mutation:
    """One entry of the list."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


def read_mutations(path: Path, root: Path) -> list[Mutation]:
    """The entries of a list, each of which applies to the tree at `root`.

    Raises:
        ValueError: an entry that is not one, a name twice, or a text that does not occur exactly once; all are named.
    """
    entries, problems = [], []
    for number, tree in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), 1):
        needed = {field.name for field in fields(Mutation)}
        if not isinstance(tree, dict) or tree.keys() != needed or not isinstance(tree["tests"], list):
            problems.append(f"entry {number} must have {', '.join(sorted(needed))}, tests a list, got {tree}")
            continue
        entry = Mutation(**{**tree, "tests": tuple(tree["tests"])})
        problems += [f"{entry.name}: {problem}" for problem in _problems(entry, root)]
        if entry.name in {other.name for other in entries}:
            problems.append(f"{entry.name}: there are two of this name")
        entries.append(entry)
    if problems:
        raise ValueError(f"{path} does not fit the tree:\n" + "\n".join(problems))
    return entries


def _problems(entry: Mutation, root: Path) -> Iterator[str]:
    if not (root / entry.file).is_file():
        yield f"no file {entry.file}"
    elif (count := (root / entry.file).read_text(encoding="utf-8").count(entry.old)) != 1:
        yield f"the old text must occur exactly once in {entry.file}, it occurs {count} times: {entry.old!r}"
    if entry.old == entry.new:
        yield "nothing changes"
    for test in entry.tests:
        if not (root / test.partition("::")[0]).exists():
            yield f"no test file {test}"


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of a tree without what git would ignore."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(root, copy, symlinks=True, ignore=LEFT_OUT)
        if (root.parent / "shared").is_dir():
            (copy.parent / "shared").symlink_to((root.parent / "shared").resolve())
        yield copy


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code for the tests of a copy (negative: the signal that ended it), and what it wrote."""
    output = copy.parent / "output.txt"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            signal.alarm(LONGEST)
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            code = pytest.main([*OPTIONS, f"--rootdir={copy}", *tests])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output.read_text(errors="replace")


def broken(copy: Path, entry: Mutation, tests: Sequence[str]) -> str:
    """The verdict on one entry: killed, SURVIVED, or UNCLEAR where the tests could not be run."""
    file = copy / entry.file
    whole = file.read_text(encoding="utf-8")
    try:
        _write(file, whole.replace(entry.old, entry.new))
        code, output = run_tests(copy, tests)
    finally:
        _write(file, whole)
    verdict = VERDICTS.get(code, f"UNCLEAR (exit code {code})")
    if verdict.startswith("UNCLEAR"):
        print(output)
    return verdict


def _write(file: Path, text: str) -> None:
    """Python takes the bytecode of a file of the same size and second for its own, so each text gets another second."""
    later = file.stat().st_mtime + 2
    file.write_text(text, encoding="utf-8")
    os.utime(file, (later, later))


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the tool; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=root / "tests" / "mutations.yaml", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these entries")
    parser.add_argument("--all-tests", action="store_true", help="the whole suite for each entry")
    args = parser.parse_args(argv)
    try:
        entries = read_mutations(args.list, root)
        if unknown := set(args.only or ()) - {entry.name for entry in entries}:
            raise ValueError(f"no entry is named {', '.join(sorted(unknown))}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    entries = [entry for entry in entries if args.only is None or entry.name in args.only]
    # Plugins would take seconds, too. Triton must know before it is imported that it is interpreted, see tests/conftest.py.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TRITON_INTERPRET": "1"}
    for library in LIBRARIES:
        importlib.import_module(library)
    width, start = max(len(entry.name) for entry in entries), time.perf_counter()
    with copied(root) as copy:
        whole = ["tests"] if args.all_tests else list(dict.fromkeys(test for entry in entries for test in entry.tests))
        code, output = run_tests(copy, whole)
        if code != pytest.ExitCode.OK:
            print(f"{output}\nthe tests fail with nothing broken", file=sys.stderr)
            return 2
        print(f"{'nothing broken':<{width}}  pass {time.perf_counter() - start:8.1f} s", flush=True)
        survivors = 0
        for entry in entries:
            begin = time.perf_counter()
            verdict = broken(copy, entry, whole if args.all_tests else entry.tests)
            survivors += not verdict.startswith("killed")
            print(f"{entry.name:<{width}}  {verdict} {time.perf_counter() - begin:6.1f} s", flush=True)
    print(f"{len(entries) - survivors} of {len(entries)} killed in {time.perf_counter() - start:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
