"""tools/ship_weights.py: the file against the weights of the run, the card against a run of the evaluation; what is refused."""

import json
import re
import runpy
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from s4nd import set_resample
from s4nd.train.checkpoint import Meta, load_model, read_checkpoint, save_checkpoint
from s4nd.train.config import config_from_dict
from s4nd.train.data import build_dataset
from s4nd.train.data.photos import PHOTOS
from s4nd.train.model import build_model
from s4nd.train.resolution import Curve, evaluate_sizes, save_curves

pytest.importorskip("skimage", reason="needs the extra: pip install 's4nd[demo]'")

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "ship_weights.py"))
ship, method_of = TOOL["ship"], TOOL["method_of"]
TAG, SIZE = "s4nd_iso_tiny.photos", 3


@pytest.fixture
def run(tmp_path):
    """run(**args of the model) -> directory of a run whose weights are as drawn."""

    def write(name="s4nd_iso_tiny", dtype=torch.float32, data="photos", classes=tuple(PHOTOS), **args):
        torch.manual_seed(0)
        root = {} if data == "photos" else {"root": "nowhere"}
        tree = {"data": {"name": data, **root}, "model": {"name": name, "args": args}, "stages": [{"size": SIZE}]}
        config = config_from_dict(tree, "the test")
        weights = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in build_model(config, len(classes)).state_dict().items()
        }
        save_checkpoint(tmp_path / "last.safetensors", weights, config, Meta(7, 0, 0.5, list(classes), "ema"))
        return tmp_path

    return write


def test_file_and_card_are_those_of_the_run(run, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    path = ship(run(drop_path_rate=0.1), TAG, resample="hold", sizes=(2, SIZE), limit=20, folder=folder)
    assert path == folder / f"{TAG}.safetensors" and {p.name for p in folder.iterdir()} == {path.name, f"{TAG}.md"}

    model, *_ = load_model(tmp_path / "last.safetensors")
    set_resample(model, "hold")
    tensors, *_ = read_checkpoint(tmp_path / "last.safetensors")
    file = load_file(path)
    assert all(torch.equal(file[key], tensors[key]) for key in tensors if not key.endswith("_extra_state"))
    loaded = timm.create_model("s4nd_iso_tiny", num_classes=14, img_size=9, checkpoint_path=path).eval()
    x = torch.randn(2, 3, 7, 5)
    assert torch.equal(loaded(x), model(x)) and method_of(loaded) == "hold"
    with safe_open(path, framework="pt") as opened:
        about = opened.metadata()
    assert json.loads(about["classes"]) == list(PHOTOS) and json.loads(about["size"]) == [SIZE, SIZE]

    text, settings = path.with_suffix(".md").read_text(encoding="utf-8"), {"batch_size": 32}
    whole, part = (build_dataset("photos", None, "test", limit=n) for n in (None, 20))
    own = evaluate_sizes(model, whole, [2, SIZE], **settings)
    control = evaluate_sizes(model, whole, [2], control=SIZE, **settings)
    few = evaluate_sizes(model, part, [SIZE, 2 * SIZE], **settings)
    assert f"| held (`hold`) | {100 * own[2]:.1f} | {100 * own[SIZE]:.1f} |" in text
    assert f"| control: resized to {SIZE} | {100 * control[2]:.1f} | {100 * own[SIZE]:.1f} |" in text
    assert re.findall(r"^\| (\d+) \| (\d+) \|$", text, re.MULTILINE) == [
        (str(size), str(round(20 * accuracy))) for size, accuracy in few.items()
    ]
    assert "on all 700 test images" in text and "the averaged weights after the last epoch, number 7; seed 0." in text
    assert "drop_path_rate: 0.1" in text and str(tmp_path) not in text
    assert f"--resample hold --sizes 2 {SIZE} --limit 20\n" in text and "data.root" not in text


def test_sizes_that_the_evaluation_of_these_weights_has_left_are_taken_from_it(run, tmp_path):
    path, found = run() / "last.safetensors", {}
    model, config, meta = load_model(path)
    set_resample(model, "hold")
    home = evaluate_sizes(model, build_dataset("photos", None, "test"), [SIZE], batch_size=32)[SIZE]
    measured = TOOL["measure"](model, config, meta, tmp_path, None, [2], 5)
    for name, here in (("other weights", home + 1 / 700), ("these", home)):
        save_curves(
            [
                Curve("x, hold", SIZE, {SIZE: here, 2: 0.111}),
                Curve("x, control", SIZE, {SIZE: here, 2: 0.222}),
                Curve("x, dilate", SIZE, {SIZE: here, 2: 0.333}),
            ],
            tmp_path / "resolution.json",
        )
        found[name] = TOOL["measure"](model, config, meta, tmp_path, None, [2], 5)
    assert found["other weights"] == measured
    assert found["these"].accuracy == {2: 0.111, SIZE: home} and found["these"].control == {2: 0.222, SIZE: home}


@pytest.mark.parametrize(
    ("tag", "changes", "message"),
    [
        (
            "s4nd_iso_tiny.moons",
            {},
            "ABOUT must say what the data of the tag are; it knows cifar10, photos, got 'moons'",
        ),
        ("s4nd_iso_small.photos", {}, "the tag is of s4nd_iso_small, the run of s4nd_iso_tiny"),
        (TAG, dict(dtype=torch.float16), "weights must be float32, got torch.float16"),
        (
            TAG,
            dict(align="edge", disc="bilinear"),
            "timm's s4nd_iso_tiny answers otherwise than the run, with model.args",
        ),
        (TAG, dict(classes=("a", "b")), r"the run's classes are \['a', 'b'\], those of photos are \['astronaut', "),
    ],
)
def test_run_that_the_tag_cannot_be_of_is_refused_and_nothing_written(run, tmp_path, tag, changes, message):
    folder = tmp_path / "weights"
    folder.mkdir()
    with pytest.raises(ValueError, match=message):
        ship(run(**changes), tag, sizes=(SIZE,), limit=5, folder=folder)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("method", ["continuous", "hold", "fold", "dilate", "hold+dilate"])
def test_method_is_told_from_the_layers(method):
    model = timm.create_model("s4nd_iso_tiny", embed_dim=8, depth=2, resample=method)
    assert method_of(model) == method
    model.blocks[1].mixer.s4nd.resample = "fold" if method != "fold" else "hold"
    with pytest.raises(ValueError, match="each by its own method"):
        method_of(model)
