"""The benchmark of several processes against what its help promises."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.slow
def test_both_runs_are_measured_and_written(tmp_path, monkeypatch, capsys):
    config = TOOLS.parent / "configs" / "photos" / "conv_iso_tiny.yaml"
    command = ["bench_processes.py", str(config), "batch_size=4", "--steps", "4", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    monkeypatch.syspath_prepend(str(TOOLS))
    runpy.run_path(str(TOOLS / "bench_processes.py"), run_name="__main__")
    found = json.loads((tmp_path / "out.json").read_text())
    ((one, two),) = found["rounds"]
    assert one > 0 and found["2 processes / 1 process"] == two / one
    assert "| training |" in capsys.readouterr().out
