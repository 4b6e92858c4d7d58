"""The tool that makes tables of runs, as a command and as functions, and runs for it."""

import runpy
import sys
from pathlib import Path

import pytest

from tests import made_runs

PATH = made_runs.ROOT / "tools/tables.py"


@pytest.fixture
def tool(monkeypatch):
    """The module's names; tools import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(PATH.parent))
    return runpy.run_path(str(PATH))


@pytest.fixture
def tables(monkeypatch, tmp_path, capsys):
    """tables(*arguments) -> the Markdown that it printed, and the path of what it wrote, without a suffix."""

    def run(*arguments) -> tuple[str, Path]:
        out = tmp_path / "new" / "topic"
        monkeypatch.syspath_prepend(str(PATH.parent))
        monkeypatch.setattr(sys, "argv", ["tables", *map(str, arguments), "--out", str(out)])
        runpy.run_path(str(PATH), run_name="__main__")
        return capsys.readouterr().out, out

    return run


@pytest.fixture
def refused(tables, capsys):
    """refused(*arguments) -> the reason."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit):
            tables(*arguments)
        return capsys.readouterr().err.split("error: ")[-1]

    return run


@pytest.fixture
def make_run(tmp_path):
    """made_runs.make_run, below tmp_path."""
    return lambda name, *overrides, **given: made_runs.make_run(tmp_path / name, *overrides, **given)
