"""Runs as wholes: continued elsewhere, by several processes, refused before they begin; and what they say when they fail."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from s4nd.ops import BackendError, _keops
from s4nd.train import files
from s4nd.train.checkpoint import load_model, load_weights, read_checkpoint, unwrapped
from s4nd.train.cli import main
from s4nd.train.config import OptimConfig, ScheduleConfig, load_config
from s4nd.train.data import build_dataset, split_off
from s4nd.train.device import choose_device
from s4nd.train.engine import Trainer, train
from s4nd.train.files import alone_in, write_atomically
from s4nd.train.logs import RunLog
from s4nd.train.optim import create_optimizer, create_schedule
from s4nd.train.processes import join

FILES = {"last.safetensors", "best.safetensors", "last.state", "log.jsonl"}


# Continued elsewhere


def test_run_continued_in_another_folder_has_the_best_of_both(write_config, tmp_path, monkeypatch):
    accuracies = iter([0.9, 0.5, 0.6])
    test = Trainer.test
    monkeypatch.setattr(Trainer, "test", lambda self: test(self)._replace(accuracy=next(accuracies)))
    path = write_config()
    first = train(load_config(path, ["stages.0.epochs=1"]))
    second = train(load_config(path, ["stages.0.epochs=3", f"resume={first}", f"out={tmp_path / 'b'}"]))
    assert {file.name for file in second.iterdir()} >= FILES
    best = read_checkpoint(second / "best.safetensors")[2]
    assert (best.epoch, best.accuracy, best.best) == (1, 0.9, True)
    last = read_checkpoint(second / "last.safetensors")[2]
    assert (last.epoch, last.accuracy, last.best) == (3, 0.6, False)
    lines = (second / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_run_without_epochs_left_leaves_its_files(write_config, tmp_path, capsys):
    path = write_config()
    first = train(load_config(path))
    assert main(["train", str(path), f"resume={first}", f"out={tmp_path / 'b'}"]) == 0
    assert {file.name for file in (tmp_path / "b").iterdir()} >= FILES
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (first / name).read_bytes()
    again = train(load_config(path, ["resume=auto", f"out={tmp_path / 'b'}", "stages.0.epochs=3"]))
    assert read_checkpoint(again / "last.safetensors")[2].epoch == 3


def test_processes_that_torchrun_did_not_start_are_refused(monkeypatch):
    for name in ("SLURM_NTASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "4")
            with pytest.raises(ValueError, match=f"{name}=4, but these processes were not started by torchrun"):
                join(torch.device("cpu"))
            patch.setenv("WORLD_SIZE", "1")
            assert join(torch.device("cpu")) == (torch.device("cpu"), 0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert join(torch.device("cpu")).world_size == 1


def test_run_of_a_version_without_a_key_goes_on(write_config):
    path = write_config()
    folder = train(load_config(path, ["stages.0.epochs=1"]))
    state = torch.load(folder / "last.state", weights_only=True)
    for key in ("accumulate", "parallel", "log_every", "mixup_mode"):
        del state["config"][key]
    del state["position"], state["scaler"]
    torch.save(state, folder / "last.state")
    train(load_config(path, ["resume=auto", "stages.0.epochs=2"]))
    assert read_checkpoint(folder / "last.safetensors")[2].epoch == 2


def test_two_runs_do_not_write_into_one_folder(write_config, monkeypatch):
    config = load_config(write_config(), ["resume=auto"])
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with alone_in(Path(config.out)), pytest.raises(ValueError, match="another process is training in"):
        train(config)
    folder = train(config)
    monkeypatch.setattr(Trainer, "train_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ValueError, match="already holds a run"):
        train(load_config(write_config()))
    assert train(config) == folder  # which was left by the one before


# Refused before they begin


@pytest.mark.parametrize(
    "model, args, stages, message",
    [
        ("convnext_atto", "depths: [1, 1, 1, 1]", "[{size: 32, epochs: 1}, {size: 31, epochs: 1}]", "stages.1, at 31"),
        ("mixer_s32_224", "mlp_ratio: 2", "[{size: 32, epochs: 1}, {size: 64, epochs: 1}]", "stages.1, at 64"),
        ("vit_tiny_patch16_224", "depth: 1", "[{size: 32, epochs: 1}, {size: 8, epochs: 1}]", "stages.1, at 8"),
        (
            "conv_iso_tiny",
            "depth: 1",
            "[{size: 8, epochs: 1}, {size: 9, epochs: 1, bandlimit: 1}]",
            "stages.1, .* for S4ND",
        ),
        (
            "s4nd_iso_tiny",
            "depth: 1",
            "[{size: 8, epochs: 1}, {size: 9, epochs: 1, bandlimit: 0}]",
            "stages.1.bandlimit",
        ),
    ],
)
def test_stage_that_cannot_be_is_refused_before_the_first_one_trains(
    model, args, stages, message, folder, tmp_path, monkeypatch
):
    text = f"data: {{name: folder, root: {folder}}}\nmodel: {{name: {model}, args: {{{args}}}}}\nstages: {stages}\n"
    (tmp_path / "x.yaml").write_text(text + f"batch_size: 16\ndevice: cpu\nout: {tmp_path / 'run'}\n")
    monkeypatch.setattr(Trainer, "train_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=message):
        train(load_config(tmp_path / "x.yaml"))
    assert not (tmp_path / "run").exists()


def test_checking_the_stages_leaves_the_model_as_it_was(write_config):
    stages = "stages=[{size: 8, epochs: 1, bandlimit: 0.5}, {size: 10, epochs: 2}]"
    trainer = Trainer(load_config(write_config("s4nd_iso_tiny"), [stages, "ema=0.9"]), torch.device("cpu"))
    before = {key: value.clone() for key, value in trainer.learner.model.state_dict().items()}
    trainer.learner.check_stages()
    assert all(torch.equal(before[key], value) for key, value in trainer.learner.model.state_dict().items())
    assert trainer.learner.model.training and trainer.learner.model.img_size == (8, 8)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "xpu", "xpu:1", "meta", "hpu"])
def test_device_that_is_not_there_is_named(name, monkeypatch):
    for kind in ("cuda", "mps", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 0)
    with pytest.raises(ValueError, match=f"device={name} needs a GPU that is not there: 0 of type {name[:3]}"):
        choose_device(name)


# Evaluated at sizes that the model refuses


def test_size_that_the_model_refuses_leaves_the_others(folder, tmp_path, capsys):
    text = f"data: {{name: folder, root: {folder}}}\nmodel: {{name: convnext_atto, args: {{depths: [1, 1, 1, 1]}}}}\n"
    text += f"stages: [{{size: 32, epochs: 1}}]\nbatch_size: 16\ndevice: cpu\nout: {tmp_path / 'run'}\n"
    (tmp_path / "x.yaml").write_text(text)
    best = train(load_config(tmp_path / "x.yaml")) / "best.safetensors"
    capsys.readouterr()
    assert main(["eval", str(best), "--sizes", "31", "32", "48", "--device", "cpu"]) == 0
    out, told = (stream.splitlines() for stream in capsys.readouterr())
    assert out[0].split() == ["size", "32", "48"] and len(out[1].split()) == 3
    assert told[0] == "convnext_atto, 31 px: refused" and len(told) == 3
    (refused,) = [line for line in out if "does not run at 31 x 31 pixels: " in line]
    assert len(refused.split("pixels: ")[1]) > 5
    assert out[-1] == f"chosen among its epochs by accuracy on this test split, which flatters it: {best}"
    assert main(["eval", str(best), "--sizes", "31", "--device", "cpu"]) == 2
    assert "does not run at 31 x 31 pixels" in capsys.readouterr().err


def test_what_was_computed_is_shown_when_a_later_size_fails(write_config, tmp_path, monkeypatch, capsys):
    best = train(load_config(write_config())) / "best.safetensors"
    from s4nd.train.commands import compare

    evaluate_sizes = compare.evaluate_sizes

    def failing(model, dataset, sizes, **settings):
        if sizes == [12]:
            raise OSError(errno.EIO, "the disk is gone")
        return evaluate_sizes(model, dataset, sizes, **settings)

    monkeypatch.setattr(compare, "evaluate_sizes", failing)
    capsys.readouterr()
    assert main(["eval", str(best), "--sizes", "8", "10", "12", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["size", "8", "10"] and "the disk is gone" in err


# What they say


def test_single_image_left_for_mixup_is_said(write_config, folder, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(folder, root)
    for i, file in enumerate(sorted((root / "train").glob("*/*.png"))):
        if i:
            file.write_bytes(b"no image")
    config = load_config(write_config(), ["mixup=0.5", f"data.root={root}", "batch_size=64"])
    with pytest.raises(ValueError, match="has no batch: mixup and cutmix need two images, 1 could be read"):
        train(config)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_weights_saved_inside_a_wrapper_are_those_of_the_model(prefix, write_config, tmp_path):
    from safetensors.torch import save_file

    best = train(load_config(write_config())) / "best.safetensors"
    tensors = read_checkpoint(best)[0]
    wrapped = {prefix + key: value for key, value in tensors.items()}
    assert unwrapped(wrapped).keys() == tensors.keys()
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    from s4nd.train.checkpoint import read_tensors

    model = load_model(best)[0]
    for p in model.parameters():
        p.data.zero_()
    load_weights(model, read_tensors(tmp_path / "wrapped.safetensors")[0], "wrapped")
    assert all(torch.equal(tensors[key], value) for key, value in model.state_dict().items())


def test_names_that_only_begin_like_a_wrapper_stay():
    some = {"module.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert unwrapped(some).keys() == some.keys() and unwrapped({}) == {}
    assert unwrapped({"blocks.0._orig_mod.weight": torch.zeros(1)}).keys() == {"blocks.0.weight"}


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.safetensors"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_names_the_log(tmp_path):
    log = RunLog(tmp_path)
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*log\.jsonl"):
        log.write({"epoch": 1})
    log.close()


@pytest.mark.parametrize("epochs, steps, warmup", [(1, 1, 0.0), (1, 1, 0.9), (1, 2, 0.9), (2, 1, 1.0)])
def test_schedule_of_a_step_or_two_ends_at_the_learning_rate_without_a_warning(epochs, steps, warmup, caplog):
    optimizer = create_optimizer(torch.nn.Linear(2, 2), OptimConfig(lr=0.1))
    with caplog.at_level(logging.WARNING):
        schedule = create_schedule(optimizer, ScheduleConfig(warmup_epochs=warmup), epochs, steps)
    rates = []
    for t in range(epochs * steps):
        schedule.step_update(t)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == ([0.1] if epochs * steps == 1 else [0.0, 0.1]) and not caplog.records


def test_backend_that_cannot_run_is_one_line(write_config, monkeypatch, capsys):
    def refuse(*arguments):
        raise BackendError("backend='keops' cannot run here:\n  no compiler")

    monkeypatch.setattr(_keops, "lazy_tensor", refuse)
    assert main(["train", str(write_config("s4nd_iso_tiny", backend="keops", kernel="s4d"))]) == 2
    assert capsys.readouterr().err == "s4nd: error: backend='keops' cannot run here: no compiler\n"


# Which images choose the best


def test_validation_part_is_the_same_fraction_of_every_class_and_never_trained_on(folder):
    data = build_dataset("folder", folder, "train")
    rest, aside = split_off(data, 0.25)
    assert np.bincount(aside.labels).tolist() == [6, 6] and len(rest) + len(aside) == len(data)
    assert not set(rest.indices) & set(aside.indices)
    assert split_off(data, 0.25)[1].indices.tolist() == aside.indices.tolist()
    with pytest.raises(ValueError, match=r"a fraction of 0\.01 of 48 images leaves 0 and 48"):
        split_off(data, 0.01)


def test_best_is_chosen_on_the_validation_part_and_every_place_says_so(write_config, folder, tmp_path, capsys):
    root = tmp_path / "only-train"
    shutil.copytree(folder / "train", root / "train")
    path = write_config()
    assert main(["train", str(path), f"data.root={root}", "data.val_fraction=0.25"]) == 0
    out = capsys.readouterr().out
    assert "  validation " in out and "  test " not in out and "% of the validation split of the training images" in out
    best = tmp_path / "run" / "conv_iso_tiny" / "best.safetensors"
    assert read_checkpoint(best)[2].split == "validation"
    record = json.loads((best.parent / "log.jsonl").read_text().splitlines()[0])
    assert {"validation_loss", "validation_accuracy"} <= record.keys() and "test_accuracy" not in record
    trainer = Trainer(load_config(path, [f"data.root={root}", "data.val_fraction=0.25"]), torch.device("cpu"))
    assert (len(trainer.splits.train), len(trainer.splits.judges)) == (36, 12)


def test_best_of_the_test_split_is_said_to_be(write_config, capsys):
    path = write_config()
    assert main(["train", str(path)]) == 0
    out = capsys.readouterr().out
    assert "  test " in out and "% of the test split, which chose it, after epoch" in out


def test_validation_part_of_nothing_is_refused(write_config):
    with pytest.raises(
        ValueError, match=r"data\.val_fraction=0\.001: a fraction of 0\.001 of 48 images leaves 0 and 48"
    ):
        train(load_config(write_config(), ["data.val_fraction=0.001"]))
    for value in (0, 1.5, -1):
        with pytest.raises(ValueError, match=r"data\.val_fraction must be"):
            load_config(write_config(), [f"data.val_fraction={value}"])
