"""The command line end to end, on generated images and on a little of CIFAR-10: output, files, exit status."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s4nd.train.checkpoint import read_checkpoint
from s4nd.train.cli import main
from s4nd.train.commands import compare

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = ["model.args.embed_dim=8", "model.args.depth=1", "device=cpu"]


@pytest.fixture
def run(capsys):
    def run(*args):
        status = main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run


def test_train_then_eval_of_two_checkpoints(run, write_config, tmp_path):
    for model in ("s4nd_iso_tiny", "conv_iso_tiny"):
        status, out, err = run("train", write_config(model))
        assert (status, err) == (0, "")
        assert "epoch 2/2  8 px  loss" in out and "best.safetensors: " in out
    checkpoints = [tmp_path / "run" / model / "best.safetensors" for model in ("s4nd_iso_tiny", "conv_iso_tiny")]
    status, out, err = run("eval", *checkpoints, "--sizes", 8, 12, "--out", tmp_path / "x.png")
    assert status == 0 and (tmp_path / "x.png").is_file()
    lines, cells = out.splitlines(), [cell.strip(" *") for row in out.splitlines()[1:3] for cell in row.split()[1:]]
    told = [f"{name}, {size} px" for name in ("s4nd_iso_tiny", "conv_iso_tiny") for size in (8, 12)]
    assert err.splitlines() == [f"{where}: {cell} %" for where, cell in zip(told, cells, strict=True)]
    assert lines[0].split() == ["size", "8", "12"]
    assert lines[1].startswith("s4nd_iso_tiny") and lines[2].startswith("conv_iso_tiny")
    assert lines[4] == f"plot: {tmp_path / 'x.png'}"
    assert lines[5].startswith("s4nd_iso_tiny: ") and "; conv_iso_tiny: " in lines[5]


def test_eval_agrees_with_the_accuracy_in_training(run, write_config, tmp_path):
    run("train", write_config("s4nd_iso_tiny"))
    path = tmp_path / "run" / "s4nd_iso_tiny" / "best.safetensors"
    _, out, _ = run("eval", path, "--sizes", 8)
    accuracy = read_checkpoint(path)[2].accuracy
    assert f"{100 * accuracy:.1f} % at 8 (trained)" in out
    assert path.with_name("resolution.png").is_file()


def test_eval_renders_images_as_the_run_did(run, write_config, tmp_path, monkeypatch):
    run("train", write_config(), "data.crop_pct=0.5", "data.interpolation=nearest", "stages.0.epochs=1")
    seen = []
    monkeypatch.setattr(compare, "evaluate_sizes", lambda *_, **given: seen.append(given["transforms"]) or {8: 0.5})
    run("eval", tmp_path / "run" / "conv_iso_tiny" / "last.safetensors", "--sizes", 8)
    assert [(transforms.crop_pct, transforms.interpolation) for transforms in seen] == [(0.5, "nearest")]


def test_same_model_twice_is_told_apart_by_path(run, write_config, tmp_path):
    run("train", write_config())
    path = tmp_path / "run" / "conv_iso_tiny" / "best.safetensors"
    _, out, _ = run("eval", path, path.with_name("last.safetensors"), "--sizes", 8)
    assert f"conv_iso_tiny ({path})" in out
    shutil.copytree(path.parent, tmp_path / "again")
    _, out, _ = run("eval", path, tmp_path / "again" / path.name, "--sizes", 8)
    assert "conv_iso_tiny (conv_iso_tiny)" in out and "conv_iso_tiny (again)" in out


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["optim.weigth_decay=1"], "did you mean weight_decay?"),
        (["stages.0.size=0"], "must be at least 1, got 0"),
        (["data.root=nowhere"], "nowhere"),
        (["data.name=cifra10"], "cifra10"),
        (["model.name=resnet"], "not a model of timm's registry"),
        (["device=gpu"], "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_mistake_is_one_line_and_status_2(run, write_config, overrides, message):
    status, _, err = run("train", write_config(), *overrides)
    assert status == 2 and err.startswith("s4nd: error: ") and err.count("\n") == 1
    assert message in err and '"' not in err.split(":")[1]


def test_debug_shows_the_traceback(write_config):
    with pytest.raises(KeyError):
        main(["train", str(write_config()), "nonsense=1", "--debug"])


def test_damaged_image_is_skipped_in_training_and_an_error_in_eval_unless_told(run, write_config, folder, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(folder, root)
    for split in ("train", "test"):
        (root / split / "rows" / "0.png").write_bytes(b"no image")
    path = write_config()
    status, *_ = run("train", path, "stages.0.epochs=1", f"data.root={root}")
    checkpoint = tmp_path / "run" / "conv_iso_tiny" / "best.safetensors"
    assert status == 0
    status, _, err = run("eval", checkpoint, "--sizes", 8, "--root", root)
    assert status == 2 and "0.png" in err
    status, out, _ = run("eval", checkpoint, "--sizes", 8, "--root", root, "--skip-bad")
    assert status == 0 and "% at 8" in out


def test_eval_on_data_with_other_classes_is_refused(run, write_config, folder, tmp_path):
    run("train", write_config(), "stages.0.epochs=1")
    shutil.copytree(folder / "test" / "rows", tmp_path / "other" / "test" / "dogs")
    shutil.copytree(folder / "train", tmp_path / "other" / "train")
    checkpoint = tmp_path / "run" / "conv_iso_tiny" / "best.safetensors"
    status, _, err = run("eval", checkpoint, "--sizes", 8, "--root", tmp_path / "other")
    assert status == 2 and "classes" in err


def test_finished_run_is_left_as_it_is(run, write_config, tmp_path):
    path = write_config()
    run("train", path)
    before = (tmp_path / "run" / "conv_iso_tiny" / "last.state").stat().st_mtime_ns
    status, out, _ = run("train", path, "resume=auto")
    assert status == 0 and "best.safetensors" in out and "epoch 1/2" not in out
    assert (tmp_path / "run" / "conv_iso_tiny" / "last.state").stat().st_mtime_ns == before


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("s4nd ")


def test_a_little_cifar10_through_the_shipped_config(run, shared, tmp_path):
    for model in ("s4nd_iso_tiny", "conv_iso_tiny"):
        data = ["data.name=parquet", f"data.root={shared / 'data' / 'cifar10'}", "data.train_limit=256"]
        steps = ["data.test_limit=128", "stages.0.epochs=2", f"out={tmp_path / model}"]
        status, _, err = run("train", CONFIGS / "cifar10" / f"{model}.yaml", *data, *steps, *TINY)
        assert (status, err) == (0, "")
    checkpoints = [tmp_path / model / "best.safetensors" for model in ("s4nd_iso_tiny", "conv_iso_tiny")]
    status, out, _ = run("eval", *checkpoints, "--sizes", 16, 24, 32, "--device", "cpu")
    assert status == 0 and out.splitlines()[0].split() == ["size", "16", "24", "32"]


@pytest.mark.slow
def test_two_processes_train_what_one_does(write_config, tmp_path):
    """Without noise a step over two processes is the step over their joint batch, up to the rounding of a mean."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = []
    for name, command in (("one", [sys.executable]), ("two", launch)):
        folders.append(tmp_path / name)
        command = [
            *command,
            "-m",
            "s4nd.train.cli",
            "train",
            str(write_config()),
            f"out={folders[-1]}",
            "data.hflip=false",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=120)
    (one, _, meta), (two, _, meta_two) = (read_checkpoint(folder / "last.safetensors") for folder in folders)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-4)
    assert meta_two.accuracy == meta.accuracy
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in folders]
    assert [r["train_loss"] for r in logs[1]] == pytest.approx([r["train_loss"] for r in logs[0]], abs=1e-4)
