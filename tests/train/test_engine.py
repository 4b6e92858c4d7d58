"""The training loop against itself: interrupted and uninterrupted, with stages, and when the loss is not finite."""

import json

import pytest
import torch

from s4nd.train import engine
from s4nd.train.checkpoint import load_model, read_checkpoint
from s4nd.train.config import load_config
from s4nd.train.engine import DivergedError, Trainer, train

ALL_RANDOMNESS = [
    "stages=[{size: 8, epochs: 3, bandlimit: 0.5}, {size: 10, epochs: 2}]",
    "ema=0.9",
    "mixup=0.5",
    "cutmix=1.0",
    "label_smoothing=0.1",
    "data.pad=0.125",
    "optim.clip_grad=1.0",
    "schedule.warmup_epochs=1",
]


class Killed(BaseException):
    """Stands for a kill: no handler catches it."""


def kill_at_step(monkeypatch, step):
    """The process dies in the training step after `step` finished ones."""
    train_step = Trainer.train_step

    def dying(self, images, labels):
        if self.step == step:
            raise Killed
        return train_step(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", dying)


def states(folder):
    state = torch.load(folder / "last.state", weights_only=True)
    return {**state["model"], **{f"ema.{key}": value for key, value in state["ema"].items()}}


@pytest.fixture
def config(write_config):
    path = write_config("s4nd_iso_tiny", d_state=4, drop_path_rate=0.3, proj_drop_rate=0.1)
    return lambda *overrides: load_config(path, [*ALL_RANDOMNESS, *overrides])


@pytest.fixture
def uninterrupted(config, tmp_path):
    return train(config(f"out={tmp_path / 'whole'}"))


# 3 steps an epoch: inside the first epoch, between two, inside one, at the stage boundary, inside the second stage.
@pytest.mark.parametrize("step", [1, 6, 7, 9, 13])
def test_resumed_run_ends_with_the_same_weights(config, uninterrupted, monkeypatch, step):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, step)
        train(config())
    folder = train(config("resume=auto"))
    whole, resumed = states(uninterrupted), states(folder)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    for name in ("last.safetensors", "best.safetensors"):
        (a, _, meta_a), (b, _, meta_b) = read_checkpoint(uninterrupted / name), read_checkpoint(folder / name)
        assert meta_a == meta_b and all(torch.equal(a[key], b[key]) for key in a)
    epochs = [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5]


def test_kill_between_the_files_of_an_epoch_is_repaired(config, uninterrupted, monkeypatch):
    """The weights of epoch 2 and its log line are written, its state is not."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        save_state = engine.save_state

        def dying(folder, config, state):
            if state["epoch"] == 2:
                raise Killed
            save_state(folder, config, state)

        patch.setattr(engine, "save_state", dying)
        train(config())
    folder = train(config("resume=auto"))
    whole, resumed = states(uninterrupted), states(folder)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 5


def test_resume_from_another_directory_leaves_it_alone(config, uninterrupted, tmp_path):
    before = (uninterrupted / "last.state").read_bytes()
    folder = train(config(f"resume={uninterrupted}", "stages.1.epochs=3"))
    assert (uninterrupted / "last.state").read_bytes() == before
    assert read_checkpoint(folder / "last.safetensors")[2].epoch == 6


def test_log_has_a_line_per_epoch_and_schedule_restarts_with_the_stage(uninterrupted):
    records = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    assert [record["size"] for record in records] == [8, 8, 8, 10, 10]
    assert records[2]["lr"] < records[1]["lr"] < records[3]["lr"] * 2
    assert records[3]["lr"] > records[2]["lr"]
    assert {"train_loss", "test_accuracy", "seconds", "images_per_second"} <= records[0].keys()
    assert list(uninterrupted.glob("events.out.tfevents*"))


def test_checkpoint_is_the_averaged_model_of_the_last_stage(uninterrupted):
    model, config, meta = load_model(uninterrupted / "last.safetensors")
    ema = torch.load(uninterrupted / "last.state", weights_only=True)["ema"]
    assert all(torch.equal(value, ema[key]) for key, value in model.state_dict().items())
    assert meta.weights == "ema" and meta.stage == 1 and model.img_size == (10, 10)
    assert config.stages[1].bandlimit is None and not model.training


def test_second_run_in_a_directory_is_refused(write_config):
    config = load_config(write_config(), ["stages.0.epochs=1"])
    folder = train(config)
    before = (folder / "last.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds a run: continue it with resume=auto"):
        train(config)
    assert (folder / "last.safetensors").read_bytes() == before


def test_resume_with_another_config_names_the_keys(write_config):
    path = write_config()
    train(load_config(path, ["stages.0.epochs=1"]))
    changed = ["resume=auto", "optim.lr=0.5", "data.workers=1", "model.args.depth=1"]
    with pytest.raises(ValueError, match=r"another config: model.args.depth: 2, now 1; optim.lr: 0.01, now 0.5$"):
        train(load_config(path, changed))


def test_resume_path_without_a_run_is_an_error(write_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(load_config(write_config(), [f"resume={tmp_path / 'nothing'}"]))


def test_damaged_state_is_an_error(write_config):
    path = write_config()
    folder = train(load_config(path, ["stages.0.epochs=1"]))
    (folder / "last.state").write_bytes((folder / "last.state").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last.state: damaged"):
        train(load_config(path, ["resume=auto"]))


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_nan_stops_with_step_and_epoch_and_keeps_the_checkpoint(write_config, monkeypatch, what):
    path = write_config()
    folder = train(load_config(path, ["stages.0.epochs=1"]))
    before = {file.name: file.read_bytes() for file in folder.glob("last.*")}
    train_step = Trainer.train_step

    def poisoned(self, images, labels):
        at = {"loss": 4, "weights": 6}[what]  # of 6 steps: one before a step, or after the very last update
        value = train_step(self, images, labels) if what == "weights" or self.step != at else 0.0
        if self.step >= at:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return train_step(self, images, labels) if what == "loss" and self.step == at else value

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    message = "the loss is nan at step 5, in epoch 2" if what == "loss" else "not finite at the end of epoch 2, step 6"
    with pytest.raises(DivergedError, match=message):
        train(load_config(path, ["resume=auto"]))
    assert {file.name: file.read_bytes() for file in folder.glob("last.*")} == before


def test_bf16_autocast_trains(write_config):
    folder = train(load_config(write_config("s4nd_iso_tiny"), ["amp=bf16", "stages.0.epochs=1"]))
    tensors, _, _ = read_checkpoint(folder / "last.safetensors")
    weights = [tensor for name, tensor in tensors.items() if not name.endswith("_extra_state")]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights)


def test_stripes_are_learned(write_config):
    folder = train(load_config(write_config("s4nd_iso_tiny"), ["stages.0.epochs=8"]))
    assert read_checkpoint(folder / "best.safetensors")[2].accuracy > 0.9


def test_unreadable_batches_leave_the_number_of_steps(write_config, monkeypatch):
    """A process that made fewer steps than the others would leave them waiting."""
    seen = []
    monkeypatch.setattr(Trainer, "train_step", lambda self, images, labels: seen.append(labels.tolist()) or 0.0)
    trainer = Trainer(load_config(write_config()), torch.device("cpu"))
    trainer.enter(0)
    monkeypatch.setattr(trainer, "loader", lambda *_, **__: [(torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 0]))])
    trainer.train_epoch(0)
    assert seen == [[0, 1, 0]] * 3


def test_no_readable_image_is_an_error(write_config, monkeypatch):
    trainer = Trainer(load_config(write_config()), torch.device("cpu"))
    trainer.enter(0)
    monkeypatch.setattr(trainer, "loader", lambda *_, **__: [])
    with pytest.raises(ValueError, match="none of the training images could be read"):
        trainer.train_epoch(0)


def test_odd_batch_is_refused_with_mixup(write_config):
    with pytest.raises(ValueError, match="batch_size=7 must be a multiple of 2"):
        train(load_config(write_config(), ["mixup=0.5", "batch_size=7"]))


def test_absent_gpu_is_an_error(write_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device=cuda needs a GPU that is not there"):
        train(load_config(write_config(), ["device=cuda"]))
