"""The benchmark of whole models against what its help promises, at tiny sizes and on made-up times."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

TOOLS = Path(__file__).resolve().parents[2] / "tools"
OURS = {"s4nd_convnext_tiny", "s4nd_vit_base_patch16_224", "s4nd_iso_tiny"}
RIVALS = {"convnext_tiny", "vit_base_patch16_224", "conv_iso_tiny"}
TORCH = ("--only", "training", "inference")


@pytest.fixture
def tool(monkeypatch):
    """tool() -> the module's names; tools import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda run_name="tool": runpy.run_path(str(TOOLS / "bench_models.py"), run_name=run_name)


@pytest.fixture
def bench(tool, monkeypatch, tmp_path):
    """bench(*arguments) -> what it wrote to the JSON file beside the picture, in a folder that was not there."""

    def run(*arguments: str) -> dict:
        out = tmp_path / "new" / "bench"
        threads = ("--threads", str(torch.get_num_threads()))
        monkeypatch.setattr(sys, "argv", ["bench_models", "--quick", *threads, *arguments, "--out", str(out)])
        tool("__main__")
        assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads(Path(f"{out}.json").read_text())

    return run


def test_sections_of_torch_are_measured_printed_and_drawn_for_every_model(bench, capsys):
    report, printed = bench(*TORCH), capsys.readouterr().out
    assert set(report) == {"torch", "timm", "threads", "cpus", "settings", "targets", "results"}
    assert list(report["results"]) == ["training", "inference"]
    families = report["settings"]["families"].values()
    for section, tables in report["results"].items():
        assert f"\n{section}: " in printed
        for (title, rows), family in zip(tables.items(), families, strict=True):
            assert f"| {title} |" in printed
            expected = {f"{label}, {layout}" for label in family["models"] for layout in family["layouts"]}
            assert {row for row in rows if " fused" not in row} == expected
            for row, columns in rows.items():
                ratios = {f"{quantity} / {family['rival']}" for quantity in ("time", "memory")}
                assert {"ms", "images/s", "MiB"} | ratios <= set(columns)
                assert all(x > 0 for x in columns.values())
                ours = row.startswith("s4nd")
                assert ("kernels / step" in columns) == (ours and section == "training")
                assert (row.replace(", ", " fused, ") in rows) == (
                    ours and section == "inference" and "fused" not in row
                )
    compared = {row.split(",")[0] for t in report["results"].values() for rows in t.values() for row in rows}
    assert OURS | RIVALS | {f"{name} fused" for name in OURS} <= compared
    assert all(set(report["targets"][section]) <= compared for section in report["results"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter's own parts
def test_onnx_runtime_runs_every_model_at_every_batch_size(bench):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    chosen = ("--only", "runtime", "--models", "s4nd_convnext_tiny", "--batch-size", "1", "2")
    tables = bench(*chosen)["results"]["runtime"]
    assert list(tables) == ["ConvNeXt, batch 1", "ConvNeXt, batch 2"]
    for rows in tables.values():
        assert set(rows) == {"s4nd_convnext_tiny", "convnext_tiny"}
        assert all({"ms", "images/s", "time / convnext_tiny"} <= set(columns) for columns in rows.values())


def test_chosen_models_are_measured_with_their_rivals_alone(bench):
    chosen = ("--only", "training", "--models", "s4nd_convnext_tiny s4d", "--rounds", "2", "--batch-size", "3")
    report = bench(*chosen)
    assert report["settings"]["rounds"] == 2 and report["settings"]["batch_sizes"] == [3]
    ((title, rows),) = report["results"]["training"].items()
    assert title == "ConvNeXt, batch 3"
    assert {row.split(",")[0] for row in rows} == {"s4nd_convnext_tiny s4d", "convnext_tiny"}


def test_ratios_are_to_the_rivals_faster_layout(tool):
    rows = {
        "ours, x": {"ms": 3.0, "MiB": 10.0},
        "rival, x": {"ms": 4.0, "MiB": 5.0},
        "rival, y": {"ms": 2.0, "MiB": 8.0},
        "rival 31x31, x": {"ms": 1.0, "MiB": 1.0},
    }
    table = tool()["compare"](rows, "rival", {"ours": 1.2})
    assert table["ours, x"] == rows["ours, x"] | {"time / rival": 1.5, "memory / rival": 1.25, "target / rival": 1.2}
    assert table["rival, x"] == rows["rival, x"] | {"time / rival": 2.0, "memory / rival": 0.625}
    assert table["rival, y"]["time / rival"] == 1.0
    assert table["rival 31x31, x"]["time / rival"] == 0.5


def test_throughput_counts_the_images_of_a_batch(bench):
    for tables in bench(*TORCH, "--models", "vit_base_patch16_224", "--batch-size", "3")["results"].values():
        for columns in next(iter(tables.values())).values():
            assert columns["images/s"] * columns["ms"] == pytest.approx(3000, rel=1e-12)


def test_memory_counts_weights_gradients_and_what_is_cached(tool):
    names = tool()
    model, u = torch.nn.Linear(1000, 1000, bias=False), torch.randn(1, 1000)
    weight, activations = 1e6 * 4 / 2**20, 1e-2  # MiB; activations of one row are a few kB
    assert names["memory"](names["inference"], model, u) == pytest.approx(weight, abs=activations)
    assert names["memory"](names["step"], model, u) == pytest.approx(2 * weight, abs=2 * activations)
    layer, u = names["S4ND"](32, ndim=1, d_state=2, base_size=256, algorithm="toeplitz").eval(), torch.randn(1, 32, 256)
    matrices = 32 * 256 * 256 * 4 / 2**20
    layer(u)  # now the matrices are there, and a run of the layer itself would not make them again
    assert names["memory"](names["inference"], layer, u) >= matrices


def test_kernel_generation_gives_every_parameter_of_the_kernels_a_gradient(tool):
    names = tool()
    layer = names["S4ND"](4, base_size=(6, 5))
    names["generation"](layer).run()
    assert all(p.grad is not None for p in layer.kernels.parameters()) and layer.D.grad is None


@pytest.mark.parametrize("arguments", [("--rounds", "-1"), ("--batch-size", "-2"), ("--models", "mixer_b16_224")])
def test_what_cannot_be_measured_is_refused(bench, capsys, arguments):
    with pytest.raises(SystemExit):
        bench(*arguments)
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
