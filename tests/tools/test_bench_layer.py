"""The benchmark against what its help promises, and its reference form against the layer that it is compared with."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from s4nd import S4ND

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SECTIONS = ("stages", "eval", "reference", "video", "attention", "memory", "growth")


@pytest.fixture
def tool(monkeypatch):
    """tool(name) -> the module's names; tools import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda name, run_name="tool": runpy.run_path(str(TOOLS / f"{name}.py"), run_name=run_name)


@pytest.fixture
def bench(tool, monkeypatch, tmp_path):
    """bench(*arguments) -> path of the results, without a suffix, in a folder that was not there."""

    def run(*arguments: str) -> Path:
        out = tmp_path / "new" / "bench"
        threads = ("--threads", str(torch.get_num_threads()))
        monkeypatch.setattr(sys, "argv", ["bench_layer", "--quick", *threads, *arguments, "--out", str(out)])
        tool("bench_layer", "__main__")
        return out

    return run


def test_all_sections_are_measured_printed_and_drawn(bench, capsys):
    out = bench()
    report, printed = json.loads(Path(f"{out}.json").read_text()), capsys.readouterr().out
    assert set(report) == {"torch", "threads", "cpus", "settings", "targets", "results"}
    assert tuple(report["results"]) == SECTIONS
    for section, tables in report["results"].items():
        assert f"\n{section}: " in printed
        for title, table in tables.items():
            assert f"| {title} |" in printed
            assert all(x > 0 for row in table.values() for name, x in row.items() if name != "exponent")
    assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")


def test_one_section_can_be_chosen(bench):
    out = bench("--only", "memory", "--rounds", "2")
    report = json.loads(Path(f"{out}.json").read_text())
    assert list(report["results"]) == ["memory"] and report["settings"]["rounds"] == 2
    assert Path(f"{out}.png").exists()


def test_ratios_are_to_the_better_layout_and_sums_weigh_the_blocks(tool):
    rows = {"a": {"s4d": 1.0, "conv x": 4.0, "conv y": 2.0}, "b": {"s4d": 2.0, "conv x": 1.0, "conv y": 5.0}}
    table = tool("bench_layer")["compare"](rows, "conv", {"a": 3, "b": 1})
    assert table["a"]["s4d / conv"] == 0.5 and table["b"]["s4d / conv"] == 2.0
    assert table["sum of 4 blocks"] == {"s4d": 5.0, "conv x": 13.0, "conv y": 11.0, "conv": 7.0, "s4d / conv": 5 / 7}


def test_peak_memory_counts_outputs_gradients_and_what_an_operator_uses_inside(tool):
    measure, u = tool("bench_measure"), torch.randn(10, 100)
    assert measure["peak_memory"](measure["Contestant"](u.clone)) == u.nbytes
    assert measure["peak_memory"](measure["training"](torch.neg, u)) == 2 * u.nbytes  # -u and the gradient of u
    copied = measure["Contestant"](lambda: torch.mm(u.T[::2], u[:, ::2]))  # BLAS takes no stride of two
    assert measure["peak_memory"](copied) > 50 * 50 * u.itemsize


@pytest.mark.parametrize("size", [(6,), (5, 8), (2, 3, 4)])
@pytest.mark.parametrize("rate", [1, 2])
def test_reference_form_computes_the_layer(tool, size, rate):
    torch.manual_seed(0)
    base_size = [rate * n for n in size]
    layer = S4ND(4, len(size), kernel="s4d", d_state=8, base_size=base_size, align="edge", dtype=torch.float64)
    form = tool("bench_measure")["ReferenceForm"](layer)
    u = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(form(u), layer(u), rtol=0, atol=1e-10)
    assert set(form.parameters()) == set(layer.parameters())
