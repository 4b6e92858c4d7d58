"""What `s4nd eval` says of its figures, against the files and data that they were made of."""

import hashlib
import runpy
from pathlib import Path

import pytest
import torch

from s4nd import S4ND, set_resample
from s4nd.train.about import of_data, resample_of
from s4nd.train.checkpoint import read_checkpoint
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data import build_dataset
from s4nd.train.engine import train
from s4nd.train.resolution import read_curves

CONFIG = Path(__file__).parents[2] / "configs/photos/s4nd_iso_tiny.yaml"  # its layers hold


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder):
    out = tmp_path_factory.mktemp("runs") / "one"
    changes = {"data.name": "folder", "data.root": folder, "model.args.embed_dim": 8, "model.args.depth": 2, "out": out}
    changes |= {
        "stages.0.size": 8,
        "stages.0.epochs": 1,
        "schedule.warmup_epochs": 0,
        "batch_size": 12,
        "device": "cpu",
    }
    return train(load_config(CONFIG, [f"{key}={value}" for key, value in changes.items()]))


def evaluated(run, *options: str) -> list[dict]:
    assert main(["eval", str(run / "last.safetensors"), "--sizes", "8", "--device", "cpu", *options]) == 0
    return [curve.about for curve in read_curves(run / "resolution.json")]


def test_evaluation_names_its_weights_and_how_they_were_run(run):
    about, control, dilated = evaluated(run, "--resample", "hold", "dilate", "--control")
    digest = hashlib.sha256((run / "last.safetensors").read_bytes()).hexdigest()
    for row in (about, control, dilated):
        assert (row["checkpoint"], row["sha256"], row["epoch"]) == ("one/last.safetensors", digest, 1)
        assert (row["data"], row["images"], row["frames"], row["metric"]) == ("folder", 20, None, "accuracy")
    methods = [(row["resample"], row["control"]) for row in (about, control, dilated)]
    assert methods == [("hold", False), ("hold", True), ("dilate", False)]


def test_way_of_the_checkpoint_is_said_where_none_is_asked_for(run):
    assert [row["resample"] for row in evaluated(run)] == ["hold"]  # of the config


def test_number_of_images_is_of_those_that_were_seen(run):
    everything, some = (evaluated(run, *options)[0] for options in ((), ("--limit", "6", "--skip-bad")))
    assert (everything["images"], some["images"]) == (20, 6)
    assert (everything["skip_bad"], some["skip_bad"]) == (False, True)
    assert everything["labels"] != some["labels"]


def test_tables_are_made_of_what_the_evaluation_says(run, monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIG.parents[2] / "tools"))
    evaluated(run, "--resample", "dilate", "--control")
    lines = runpy.run_path(str(CONFIG.parents[2] / "tools/result_runs.py"))["read_runs"]([run])
    accuracy = read_checkpoint(run / "last.safetensors")[2].accuracy
    assert [(line.resample, line.images, line.size, line.value) for line in lines] == [
        ("dilate", 20, 8, 100 * accuracy),
        ("control", 20, 8, 100 * accuracy),
    ]


def test_digest_of_data_tells_classes_and_labels_apart(folder):
    test = build_dataset("folder", str(folder), "test")
    same = of_data("folder", test)
    assert same == of_data("folder", build_dataset("folder", str(folder), "test"))
    test.labels = test.labels[::-1].copy()
    assert of_data("folder", test)["labels"] != same["labels"]
    test.labels, test.classes = test.labels[::-1].copy(), ["a", "b"]
    assert of_data("folder", test)["labels"] != same["labels"]


def test_way_of_a_model_is_the_one_that_was_set():
    layers = torch.nn.Sequential(*(S4ND(2, ndim=2, d_state=2, kernel="s4d", base_size=4) for _ in range(3)))
    for method in ("continuous", "hold", "dilate", "fold", "hold+dilate"):
        set_resample(layers, method)
        assert resample_of(layers) == method
    layers[2].resample = ("hold", "fold")
    assert resample_of(layers) == "dilate, fold, hold"
    assert resample_of(torch.nn.Conv2d(1, 1, 3)) == "continuous"
