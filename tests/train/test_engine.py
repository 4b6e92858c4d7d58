"""The training loop against itself: interrupted and uninterrupted, with stages, and when the loss is not finite."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from s4nd.train import engine, evaluate
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
        at = {"loss": 4, "weights": 6}[what]  # of 6 steps: before a step, or after the very last update
        if what == "weights":
            train_step(self, images, labels)
        if self.step == at:
            with torch.no_grad():
                next(self.learner.model.parameters()).fill_(float("nan"))
        if what == "loss":
            train_step(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    message = (
        "the loss is not finite at step 5, in epoch 2" if what == "loss" else "not finite at the end of epoch 2, step 6"
    )
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


class Batches(list):
    """A loader of three, of which no more could be read than this."""

    consumed, unreadable = 3, 0

    def __len__(self):
        return 3


def test_unreadable_batches_leave_the_number_of_steps(write_config, monkeypatch):
    """A process that made fewer steps than the others would leave them waiting."""
    seen = []
    monkeypatch.setattr(Trainer, "train_step", lambda self, images, labels: seen.append(labels.tolist()))
    trainer = Trainer(load_config(write_config()), torch.device("cpu"))
    trainer.enter(0)
    batches = Batches([(torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 0]))])
    monkeypatch.setattr(trainer.feed, "training", lambda *_: batches)
    trainer.train_epoch(0)
    assert seen == [[0, 1, 0]] * 3


def test_images_that_cannot_be_read_are_counted_in_each_epoch(write_config, folder, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    for name in ("rows/3.png", "columns/5.png"):
        (root / "train" / name).write_bytes(b"no image")
    out = train(load_config(write_config(), [f"data.root={root}"]))
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["unreadable"] for record in records] == [2, 2]
    assert capsys.readouterr().out.count("2 could not be read") == 2
    whole = train(load_config(write_config(), [f"out={tmp_path / 'whole'}"]))
    assert not any("unreadable" in json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines())


def test_no_readable_image_is_an_error(write_config, monkeypatch):
    trainer = Trainer(load_config(write_config()), torch.device("cpu"))
    trainer.enter(0)
    monkeypatch.setattr(trainer.feed, "training", lambda *_: Batches())
    with pytest.raises(ValueError, match="none of the training images could be read"):
        trainer.train_epoch(0)


@pytest.fixture
def trainer(config):
    """At the beginning of a run of two stages; `config` has every source of randomness."""
    trainer = Trainer(config("schedule.warmup_epochs=0"), torch.device("cpu"))
    trainer.enter(0)
    return trainer


def test_model_trains_in_training_mode_and_is_tested_in_evaluation_mode(config):
    trainer, modes = Trainer(config("ema=null"), torch.device("cpu")), []
    trainer.enter(0)
    trainer.learner.model.register_forward_hook(lambda model, *_: modes.append(model.training))
    for epoch in range(2):
        trainer.train_epoch(epoch)
        trainer.test()
    assert modes == 2 * [*[True] * 3, *[False] * 2]  # 48 images in threes of 16, then 20


def test_averaged_weights_are_evaluated(trainer):
    with torch.no_grad():
        for p in trainer.learner.ema.module.head.parameters():
            p.zero_()
    assert trainer.test().loss == pytest.approx(torch.tensor(2.0).log().item())


def test_gradient_of_a_step_is_its_own(trainer):
    """After two steps it is what it is without the first; the weights are put back, and nothing is drawn between."""
    images, labels = next(iter(trainer.feed.training(0)))
    start = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    gradients = []
    for _ in range(2):
        trainer.learner.model.load_state_dict(start)
        trainer.step = 0  # its number gives the noise
        trainer.learner.model.train()
        trainer.train_step(images, labels)
        gradients.append([p.grad.clone() for p in trainer.learner.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_loss_of_an_epoch_is_the_mean_over_its_images(trainer, monkeypatch):
    labels = [torch.zeros(n, dtype=torch.long) for n in (4, 2)]
    batches = [(i + 1, torch.zeros(len(x), 3, 8, 8), x) for i, x in enumerate(labels)]
    monkeypatch.setattr(trainer.feed, "batches", lambda *_: batches)
    weight = next(trainer.learner.model.parameters())
    monkeypatch.setattr(trainer.learner.steps(), "_loss", lambda images, labels: 0 * weight.sum() + len(labels))
    assert trainer.train_epoch(0) == (pytest.approx((4 * 4 + 2 * 2) / 6), 6)


def test_losses_and_scores_are_summed_over_the_processes(trainer, monkeypatch):
    """With another process that has seen three times as much, of a loss of 0 and all of it right."""

    def summed(values, _):
        *sums, count = torch.as_tensor(values).tolist()
        return [sums[0] + 3 * count, *sums[1:], 4 * count] if len(sums) == 2 else [*sums, 4 * count]

    alone = trainer.test()
    weight = next(trainer.learner.model.parameters())
    monkeypatch.setattr(trainer.learner.steps(), "_loss", lambda images, labels: 0 * weight.sum() + 3.0)
    loss, images = trainer.train_epoch(0)
    monkeypatch.setattr(engine, "sum_over_processes", summed)
    monkeypatch.setattr(evaluate, "sum_over_processes", summed)
    assert trainer.train_epoch(0) == (pytest.approx(loss / 4), 4 * images)
    together = trainer.test()
    assert together.images == 4 * alone.images == 80 and together.accuracy >= 0.75


def test_noise_of_a_step_follows_from_seed_epoch_step_process_and_micro_batch(trainer):
    """But for the shares of mixup, which are those of the first process and micro-batch for all."""

    def noise(epoch, step, rank, micro_batch):
        trainer.learner.steps().rank = rank
        trainer.learner.steps()._seed(epoch, step, micro_batch)
        return torch.rand(1).item(), np.random.rand()  # noqa: NPY002  it is what Mixup draws from

    first, *later, other_process, other_part = (
        noise(*numbers) for numbers in ((0, 5, 0, 0), (1, 5, 0, 0), (0, 6, 0, 0), (0, 5, 1, 0), (0, 5, 0, 1))
    )
    assert noise(0, 5, 0, 0) == first
    assert len({own for own, _ in (first, *later, other_process, other_part)}) == 5
    assert other_process[1] == other_part[1] == first[1]
    assert len({share for _, share in (first, *later)}) == 3


def test_epochs_of_a_run_have_orders_of_their_own(trainer, monkeypatch):
    seen = {0: [], 1: [], 2: []}
    for i, trainer.epoch in enumerate((0, 1, 0)):
        monkeypatch.setattr(trainer, "train_step", lambda images, labels, seen=seen[i]: seen.append(images))
        trainer.train_epoch(0)
    first, second, again = (torch.cat(seen[i]) for i in range(3))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_stage_begins_with_an_optimizer_without_moments(trainer):
    trainer.train_epoch(0)
    assert trainer.learner.optimizer.state
    trainer.enter(1)
    assert not trainer.learner.optimizer.state


def saved_epochs(folder):
    return {name: read_checkpoint(folder / f"{name}.safetensors")[2].epoch for name in ("best", "last")}


def test_best_is_the_first_of_the_highest_accuracy_of_the_last_stage(config, monkeypatch):
    """Three epochs of a stage, two of the next: the higher accuracies of the first stage do not count there."""
    accuracies = iter([0.5, 0.9, 0.8, 0.6, 0.6])
    monkeypatch.setattr(Trainer, "test", lambda self: evaluate.Score(next(accuracies), 1.0, 20))
    seen = []
    monkeypatch.setattr(engine, "summary_line", lambda record, _: seen.append(saved_epochs(folder)) or "")
    folder = Path(config().out)
    train(config())
    assert [epochs["best"] for epochs in seen] == [1, 2, 2, 4, 4]
    assert [epochs["last"] for epochs in seen] == [1, 2, 3, 4, 5]


def test_restored_trainer_is_as_far_as_the_one_that_was_saved(trainer, config):
    trainer.enter(1)
    trainer.train_epoch(0)
    trainer.epoch, trainer.best = 4, 0.7
    saved = trainer.state()
    again = Trainer(config(), torch.device("cpu"))
    again.restore(copy.deepcopy(saved))
    found = again.state()
    progress = [{key: state[key] for key in ("epoch", "step", "stage", "best")} for state in (found, saved)]
    assert progress[0] == progress[1] == {"epoch": 4, "step": 3, "stage": 1, "best": 0.7}
    for part in ("model", "ema"):
        assert all(torch.equal(value, saved[part][key]) for key, value in found[part].items())
    moments = [state["optimizer"]["state"] for state in (found, saved)]
    assert moments[1] and all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[1])


def test_odd_batch_is_refused_with_mixup(write_config):
    with pytest.raises(ValueError, match="batch_size=7 must be a multiple of 2"):
        train(load_config(write_config(), ["mixup=0.5", "batch_size=7"]))


def test_absent_gpu_is_an_error(write_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device=cuda needs a GPU that is not there"):
        train(load_config(write_config(), ["device=cuda"]))
