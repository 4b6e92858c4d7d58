"""The plotting tools against what their help promises: a PNG at the path asked for, from small settings."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "plot_resolution": ["--sizes", "4", "8", "--factors", "0.5", "2", "3"],
    "plot_kernels": ["--size", "4", "--heads", "1", "--factors", "0.5", "1", "2"],
    "plot_discretisations": ["--rates", "1", "2", "--length", "5"],
}


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """draw(tool, *arguments) -> path of the PNG it wrote, in a folder that was not there."""

    def run(tool: str, *arguments: str) -> Path:
        out = tmp_path / "new" / f"{tool}.png"
        monkeypatch.setattr(sys, "argv", [tool, *arguments, "--out", str(out)])
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        return out

    return run


def test_every_plotting_tool_is_tried():
    assert {path.stem for path in (ROOT / "tools").glob("plot_*.py")} == {*SMALL, "plot_runs"}


@pytest.mark.parametrize("tool", SMALL)
def test_tool_writes_a_picture(draw, tool):
    assert draw(tool, *SMALL[tool]).read_bytes().startswith(b"\x89PNG")


def write_checkpoint(path: Path, **meta) -> Path:
    """Of a small model as drawn."""
    from s4nd.train.checkpoint import Meta, save_checkpoint
    from s4nd.train.config import load_config
    from s4nd.train.model import build_model

    config = load_config(ROOT / "configs/photos/s4nd_iso_tiny.yaml", ["model.args.embed_dim=4", "model.args.depth=2"])
    meta = Meta(**{"epoch": 1, "stage": 0, "accuracy": 0.5, "classes": ["a", "b"], "weights": "model", **meta})
    save_checkpoint(path, build_model(config, 2).state_dict(), config, meta)
    return path


def write_run(folder: Path, accuracies: list[float], split: str = "test") -> Path:
    """A run directory with these accuracies in its log."""
    folder.mkdir()
    write_checkpoint(folder / "last.safetensors", split=split)
    lines = [json.dumps({"epoch": i + 1, f"{split}_accuracy": a}) for i, a in enumerate(accuracies)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_runs_are_drawn_with_the_accuracies_of_their_logs(draw, tmp_path):
    from s4nd.train.commands.report import read_run

    logs = {"zoh": [0.25, 0.5], "dirac": [0.25, 0.375, 0.75]}
    folders = [write_run(tmp_path / name, accuracies) for name, accuracies in logs.items()]
    assert draw("plot_runs", *map(str, folders)).read_bytes().startswith(b"\x89PNG")
    figure = runpy.run_path(str(ROOT / "tools/plot_runs.py"))["draw"](map(read_run, folders), ["one", "other"])
    (axes,) = figure.axes
    assert axes.get_ylabel() == "test accuracy (%)"
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert drawn == {"one: 50.0": ([1, 2], [25.0, 50.0]), "other: 75.0": ([1, 2, 3], [25.0, 37.5, 75.0])}


def test_runs_that_cannot_be_compared_are_refused(draw, capsys, tmp_path):
    test, validation, empty = (
        str(write_run(tmp_path / name, accuracies, split))
        for name, accuracies, split in (("a", [0.5], "test"), ("b", [0.5], "validation"), ("c", [], "test"))
    )
    with pytest.raises(ValueError, match="judged by one split, got test and validation"):
        draw("plot_runs", test, validation)
    with pytest.raises(ValueError, match=r"c has no test_accuracy in log\.jsonl"):
        draw("plot_runs", test, empty)
    with pytest.raises(SystemExit):
        draw("plot_runs", test, test, "--labels", "one")
    assert "need a label for each of the 2 runs, got 1" in capsys.readouterr().err


def test_kernels_of_a_checkpoint_are_drawn_and_a_layer_it_lacks_is_refused(draw, tmp_path):
    path = write_checkpoint(tmp_path / "x.safetensors")
    small = ["--checkpoint", str(path), "--heads", "3", "--factors", "0.5", "1"]
    assert draw("plot_kernels", *small, "--layer", "1").exists()
    with pytest.raises(ValueError, match="has 2 S4ND layers, got --layer 2"):
        draw("plot_kernels", *small, "--layer", "2")


def test_resolution_tool_draws_second_order_for_centres_and_first_for_edges():
    tool = runpy.run_path(str(ROOT / "tools/plot_resolution.py"))
    for align, order in (("centre", 2), ("edge", 1)):
        ratio = torch.tensor([tool["difference"](tool["layer_at"](n, align, "s4d"), n, 2) for n in (32, 64)])
        assert 0.75 * 2**order < ratio[0] / ratio[1] < 1.25 * 2**order


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("plot_resolution", ["--factors", "1.5"]),
        ("plot_resolution", ["--sizes", "5"]),
        ("plot_kernels", ["--heads", "8"]),
    ],
)
def test_wrong_argument_is_refused_with_the_reason(draw, capsys, tool, arguments):
    with pytest.raises(SystemExit):
        draw(tool, *arguments)
    assert "need" in capsys.readouterr().err
