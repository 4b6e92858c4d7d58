"""The benchmark of the loader against what its help promises, on a handful of small images."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

# timm's reader leaves its files to be closed by the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning"),
]

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def threads():
    """The tool sets them for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path) -> Path:
    """train/ with two classes of six images of one grey each."""
    for i in range(12):
        path = tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 48, 3), 20 * i, dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def tool(monkeypatch):
    """tool() -> the module's names; tools import each other as scripts do, from their own folder."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return lambda run_name="tool": runpy.run_path(str(TOOLS / "bench_loader.py"), run_name=run_name)


@pytest.fixture
def bench(tool, monkeypatch, tmp_path, images):
    """bench(*arguments) -> what it wrote to the JSON file beside the picture, in a folder that was not there."""

    def run(*arguments: str) -> dict:
        out = tmp_path / "new" / "bench"
        small = ["--data", str(images), "--size", "16", "--batch-size", "4", "--rounds", "2", "--workers", "0"]
        monkeypatch.setattr(sys, "argv", ["bench_loader", *small, *arguments, "--out", str(out)])
        tool("__main__")
        assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads(Path(f"{out}.json").read_text())

    return run


def test_every_section_has_both_loaders_and_their_ratio(bench, capsys):
    report, printed = bench(), capsys.readouterr().out
    assert list(report["results"]) == ["crops", "recipe", "evaluation"]
    assert report["settings"]["data"] == "images"  # no path of this machine
    assert report["target"] == 0.9 and "Target: at least 0.9 of timm's images/s." in printed
    for rows in report["results"].values():
        assert list(rows) == ["s4nd", "timm"] and all(row["images/s"] > 0 for row in rows.values())
        ratios = [rows["s4nd"][f"{name} / timm"] for name in ("least", "images/s", "most")]
        assert ratios == sorted(ratios) and rows["s4nd"]["target / timm"] == 0.9


@pytest.mark.parametrize("section", ["crops", "recipe", "evaluation"])
def test_both_give_the_same_number_of_normalised_images_of_the_same_files(tool, images, section):
    names = tool()
    settings = names["Settings"](images, batch_size=4, size=16, images=8, workers=0)
    batches = {name: [*names[name](section, settings)()] for name in ("ours", "timms")}
    for (x, labels), (y, _) in zip(batches["ours"], batches["timms"], strict=True):
        assert x.shape == y.shape == (4, 3, 16, 16) and x.dtype == y.dtype == torch.float32 and len(labels) == 4
    if section != "recipe":  # of one grey, whatever is cropped
        greys = [sorted(x[0, 0, 0].item() for batch, _ in found for x in batch) for found in batches.values()]
        assert greys[0] == pytest.approx(greys[1], abs=1e-5) and len(set(greys[0])) == 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--rounds", "0"), "--size, --batch-size, --images and --rounds must be positive"),
        (("--images", "3"), "--images 3 must fill a batch of 4"),
        (("--data", "nowhere"), "--data nowhere must be a folder with train/<class>/ of images"),
    ],
)
def test_what_cannot_be_measured_is_refused(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench(*arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
