"""The tool that breaks lines, on a tree made here: what it reports, and that the product's own list fits the product."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "mutate.py"
PRODUCT = """
def double(x):
    return 2 * x


def triple(x):
    return 3 * x
"""
TEST = """
from product import double


def test_double():
    assert double(2) == 4
"""
DOUBLE = dict(name="not doubled", file="product.py", old="2 * x", new="x", breaks="double", tests=["test_product.py"])
TRIPLE = dict(name="not tripled", file="product.py", old="3 * x", new="x", breaks="triple", tests=["test_product.py"])


@pytest.fixture
def mutate(tmp_path):
    """mutate(*entries, options=()) -> (status, lines of output, errors) of the tool in a tree of a function and a test."""
    tree = tmp_path / "tree"
    (tree / "tools").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "product.py").write_text(PRODUCT)
    (tree / "test_product.py").write_text(TEST)
    # Of the libraries that the product needs, the toy needs none.
    text = TOOL.read_text()
    line = next(line for line in text.splitlines() if line.startswith("LIBRARIES = "))
    (tree / "tools" / "mutate.py").write_text(text.replace(line, "LIBRARIES = ()"))

    def run(*entries, options=()):
        (tree / "tests" / "mutations.yaml").write_text(yaml.safe_dump(list(entries)))
        before = {path: path.read_text() for path in tree.rglob("*.py")}
        command = [sys.executable, str(tree / "tools" / "mutate.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert {path: path.read_text() for path in tree.rglob("*.py")} == before and not list(tree.rglob("*.pyc"))
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def test_killed_and_surviving_breaks_are_told_apart(mutate):
    status, lines, _ = mutate(DOUBLE, TRIPLE)
    assert status == 1 and [line.split()[:3] for line in lines[:3]] == [
        ["nothing", "broken", "pass"],
        ["not", "doubled", "killed"],
        ["not", "tripled", "SURVIVED"],
    ]
    assert lines[3].startswith("1 of 2 killed in ")
    assert mutate(DOUBLE, TRIPLE, options=["--only", "not doubled"])[0] == 0


def test_break_that_lets_no_test_run_is_not_counted_as_killed(mutate):
    status, lines, _ = mutate(dict(DOUBLE, old="def double", new="def duplicate"))
    assert status == 1 and "UNCLEAR" in lines[-2]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            dict(DOUBLE, old="4 * x"),
            "not doubled: the old text must occur exactly once in product.py, it occurs 0 times",
        ),
        (dict(DOUBLE, old="* x"), "it occurs 2 times: '* x'"),
        (dict(DOUBLE, file="gone.py"), "not doubled: no file gone.py"),
        (dict(DOUBLE, new="2 * x"), "not doubled: nothing changes"),
        (dict(DOUBLE, tests=["test_gone.py::test_double"]), "no test file test_gone.py::test_double"),
        (dict(DOUBLE, why="?"), "entry 2 must have breaks, file, name, new, old, tests"),
        (TRIPLE, "not tripled: there are two of this name"),
    ],
)
def test_entry_that_does_not_fit_is_refused_before_anything_runs(mutate, entry, message):
    status, lines, errors = mutate(TRIPLE, entry)
    assert status == 2 and lines == [] and message in errors


def test_tests_that_fail_with_nothing_broken_are_an_error(mutate):
    status, _, errors = mutate(dict(DOUBLE, tests=["test_product.py::test_gone"]))
    assert status == 2 and "the tests fail with nothing broken" in errors


def test_unknown_name_is_refused(mutate):
    assert "no entry is named halved" in mutate(DOUBLE, options=["--only", "halved"])[2]


def test_every_entry_of_the_list_fits_the_product():
    sys.path.insert(0, str(TOOL.parent))
    try:
        from mutate import read_mutations

        assert len(read_mutations(ROOT / "tests" / "mutations.yaml", ROOT)) > 50
    finally:
        sys.path.remove(str(TOOL.parent))
