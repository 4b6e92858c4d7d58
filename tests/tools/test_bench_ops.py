"""The benchmark of the products against what its help promises."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from s4nd.ops import dispatch

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")
pytestmark = pytest.mark.filterwarnings("default")  # of pykeops

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch):
    """The module's names; tools import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return runpy.run_path(str(TOOLS / "bench_ops.py"), run_name="tool")


def test_all_sections_are_measured_printed_and_drawn(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dispatch, "triton_refusal", lambda device: "no card")
    out = tmp_path / "new" / "ops"
    bench["main"](["--quick", "--out", str(out)])
    results = json.loads(out.with_suffix(".json").read_text())
    assert list(results["results"]) == ["vandermonde", "cauchy", "layers"]
    for section, tables in results["results"].items():
        for unit in ("ms", "MiB"):
            assert list(tables[unit]) == ["L 16", "L 64"]
            row = tables[unit]["L 64"]
            assert {"s4", "s4d", "s4 / s4d"} == set(row) if section == "layers" else {"definition", "torch"} <= set(row)
            assert all(x > 0 for x in row.values())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "layers, L 64: MiB of s4 / s4d" in printed
    assert "triton: backend='triton' cannot run on cpu: no card" in printed
    assert "triton" in results["refused"]


def test_backend_that_can_run_is_measured_and_one_that_cannot_is_not(bench, monkeypatch):
    def backend(w, x, L, *, backend):
        if backend == "keops":
            raise bench["BackendError"]("no compiler")
        return bench["vandermonde_definition"](w, x, L)

    monkeypatch.setitem(bench["product"].__globals__, "vandermonde", backend)
    times, memory, refused = bench["products"](bench["QUICK"], "vandermonde")
    assert refused == {"keops": "no compiler"}
    assert {"definition", "torch", "triton"} <= set(times["L 64"])
    assert "keops" not in memory["L 64"]


def test_definition_is_left_out_where_its_matrix_would_be_large(bench, monkeypatch):
    monkeypatch.setitem(bench["fits"].__globals__, "MOST", 16 * 4 * 8 * 16)
    times, _, _ = bench["products"](bench["QUICK"], "vandermonde")
    assert "definition" in times["L 16"]
    assert "definition" not in times["L 64"]


def test_memory_is_what_a_run_holds_at_most(bench):
    """The matrix of the definition, of 4 heads, 4 modes and 64 samples, is a pair of float32 for each at least."""
    settings = bench["QUICK"]
    held = bench["peak_memory"](bench["product"](settings, "vandermonde", 64, None))
    assert held >= 4 * 4 * 64 * 2 * torch.float32.itemsize


@pytest.mark.parametrize("arguments", [["--rounds", "-1"], ["--lengths", "0", "4"], ["--only", "fft"]])
def test_arguments_without_a_meaning_are_refused(bench, arguments, capsys):
    with pytest.raises(SystemExit):
        bench["main"]([*arguments, "--quick"])
    assert "error: " in capsys.readouterr().err
