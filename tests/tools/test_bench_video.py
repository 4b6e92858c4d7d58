"""The benchmark of video models and of decoding against what its help promises, at tiny sizes and on made-up times."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

TOOLS = Path(__file__).resolve().parents[2] / "tools"
LAYOUTS = ("contiguous", "channels_last_3d")


@pytest.fixture
def tool(monkeypatch):
    """tool() -> the module's names; tools import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda run_name="tool": runpy.run_path(str(TOOLS / "bench_video.py"), run_name=run_name)


@pytest.fixture
def bench(tool, monkeypatch, tmp_path):
    """bench(*arguments) -> what it wrote to the JSON file beside the picture, in a folder that was not there."""

    def run(*arguments: str) -> dict:
        out = tmp_path / "new" / "bench"
        threads = ("--threads", str(torch.get_num_threads()))
        monkeypatch.setattr(sys, "argv", ["bench_video", "--quick", *threads, *arguments, "--out", str(out)])
        tool("__main__")
        assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads(Path(f"{out}.json").read_text())

    return run


def test_models_are_measured_in_both_layouts_and_decoding_without_videos_is_skipped(bench, capsys):
    report, printed = bench("--models", "micro", "--batch-size", "1"), capsys.readouterr().out
    assert set(report) == {"torch", "timm", "threads", "cpus", "settings", "targets", "results"}
    assert list(report["results"]) == ["training", "inference"]
    assert "decoding: skipped, it needs --videos" in printed and "at most 0.5 x I3D and 0.8 x S3D" in printed
    assert report["settings"]["models"] == "micro" and "| micro, 1 clips of 2 x 32 x 32 |" in printed
    for section, rows in report["results"].items():
        labels = ["S4ND-3D", "I3D", "S3D"] + (["S4ND-3D fused"] if section == "inference" else [])
        assert set(rows) == {f"{label}, {layout}" for label in labels for layout in LAYOUTS}
        for row, columns in rows.items():
            ratios = {f"{quantity} / {rival}" for quantity in ("time", "memory") for rival in ("I3D", "S3D")}
            assert {"ms", "clips/s", "MiB"} | ratios <= set(columns) and all(x > 0 for x in columns.values())
            assert columns["clips/s"] * columns["ms"] == pytest.approx(1000, rel=1e-12)
            has_target = section == "training" and row.startswith("S4ND-3D")
            targets = {k: x for k, x in columns.items() if k.startswith("target")}
            assert targets == ({"target / I3D": 0.5, "target / S3D": 0.8} if has_target else {})
        for rival in ("I3D", "S3D"):  # its better layout is what the others are compared with
            assert min(rows[f"{rival}, {layout}"][f"time / {rival}"] for layout in LAYOUTS) == 1


def test_layouts_are_those_of_the_clips_and_of_the_weights(tool):
    names = tool()
    models = names["build"](names["QUICK"])
    weights = {"I3D": "stem.0.weight", "S3D": "stages.1.downsample.1.weight"}
    formats = {"I3D": torch.channels_last_3d, "S3D": torch.channels_last}
    for label, weight in weights.items():
        for layout in LAYOUTS:
            p = models[f"{label}, {layout}"].get_parameter(weight)
            assert p.is_contiguous(memory_format=formats[label]) == (layout != "contiguous")
    clips = names["signal"]("I3D, channels_last_3d", names["QUICK"])
    assert clips.is_contiguous(memory_format=torch.channels_last_3d) and clips.shape == (2, 3, 2, 32, 32)


def test_decoding_compares_clips_with_decords_reading_of_the_same_files(bench, capsys, shared, tmp_path):
    pytest.importorskip("decord", reason="needs decord to compare with: pip install decord2")
    files = sorted((shared / "data" / "videos" / "arid6" / "val" / "Walk").glob("*.mp4"))[:2]
    (tmp_path / "videos" / "Walk").mkdir(parents=True)
    for file in files:
        shutil.copy(file, tmp_path / "videos" / "Walk")
    report = bench("--only", "decoding", "--videos", str(tmp_path / "videos"), "--rounds", "2", "--size", "64")
    assert list(report["results"]) == ["decoding"] and report["settings"]["rounds"] == 2
    rows = report["results"]["decoding"]
    assert list(rows) == ["s4nd", "decord", "decord scaled"]
    assert rows["s4nd"]["target / decord"] == report["targets"]["decoding"] == 0.85
    for other in ("decord", "decord scaled"):
        ratio = rows["s4nd"]["clips/s"] / rows[other]["clips/s"]
        assert rows["s4nd"][f"clips/s / {other}"] == pytest.approx(ratio, rel=1e-12)
    assert "Target: at least 0.85 of decord's clips/s" in capsys.readouterr().out
    # Rows of 48 pixels are padded to 64, which decord does not read.
    small = bench("--only", "decoding", "--videos", str(tmp_path / "videos"), "--size", "48")
    assert list(small["results"]["decoding"]) == ["s4nd", "decord"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--rounds", "0"), "--rounds, --batch-size and --threads must be positive"),
        (("--frames", "1"), "--frames at least 2"),
        (("--size", "16"), "--size at least 32"),
        (("--videos", "nowhere"), r"--videos nowhere must be a folder"),
        (("--only", "decoding"), "--only decoding needs --videos"),
    ],
)
def test_what_cannot_be_measured_is_refused(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench(*arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
