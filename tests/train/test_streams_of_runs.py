"""Runs on streams against runs on the same images in a folder, and against themselves when they are interrupted."""

import pytest
import torch

from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data import make_loader
from s4nd.train.engine import Trainer, train
from tests.train.test_engine import ALL_RANDOMNESS, Killed, kill_at_step, states
from tests.train.test_processes import run_processes


@pytest.fixture
def path(write_config):
    return write_config("s4nd_iso_tiny", d_state=4, drop_path_rate=0.3)


@pytest.fixture
def shards(stripes_in_shards):
    return ["data.name=wds/stripes", f"data.root={stripes_in_shards}"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_one_shard_is_the_run_on_the_folder(path, shards, tmp_path, workers):
    """Bit for bit: the same images in the same steps, augmented and mixed alike, and the same accuracy."""
    folder = train(load_config(path, [*ALL_RANDOMNESS, f"out={tmp_path / 'folder'}"]))
    overrides = [*ALL_RANDOMNESS, *shards, f"data.workers={workers}", f"out={tmp_path / 'shards'}"]
    stream = train(load_config(path, overrides))
    assert same(states(folder), states(stream))
    logs = [[line for line in (run / "log.jsonl").read_text().splitlines()] for run in (folder, stream)]
    kept = [[line.split('"seconds"')[0] for line in log] for log in logs]
    assert kept[0] == kept[1] and len(kept[0]) == 5


@pytest.mark.slow
def test_two_processes_on_one_shard_are_those_on_the_folder(path, shards, tmp_path):
    """Bit for bit: each has its share of every batch, whichever of its workers reads it."""
    stages = "stages=[{size: 8, epochs: 2}]"
    for name, source in (("folder", []), ("shards", [*shards, "data.workers=2"])):
        overrides = ["ema=0.9", "mixup=0.5", stages, *source, f"out={tmp_path / name}"]
        for (out, err), status in run_processes(2, path, overrides, [tmp_path, tmp_path]):
            assert status == 0, out + err
    assert same(states(tmp_path / "folder"), states(tmp_path / "shards"))


def test_an_epoch_on_several_shards_sees_each_image_once(path, shards, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "train_step", lambda self, images, labels: seen.append(images))
    trainer = Trainer(load_config(path, [*shards, "data.train_split=shards", "data.hflip=false"]), torch.device("cpu"))
    trainer.enter(0)
    plain = make_loader(trainer.splits.train, 8, 8, train=False, rendering=trainer.feed.rendering)
    plain = torch.cat([images for images, _ in plain])
    for images, _ in trainer.feed.training(0):
        seen.append(images)
    same_image = (torch.cat(seen)[:, None] == plain).flatten(2).all(2)
    assert same_image.shape == (48, 48) and (same_image.sum(0) == 1).all() and (same_image.sum(1) == 1).all()


@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_run_on_a_stream_that_was_killed_goes_on_with_other_workers(path, shards, tmp_path, monkeypatch, step):
    overrides = [*ALL_RANDOMNESS, *shards, "data.train_split=shards", "data.shuffle=11", "save_every_steps=1"]
    whole = states(train(load_config(path, [*overrides, f"out={tmp_path / 'whole'}"])))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, step)
        train(load_config(path, [*overrides, "data.workers=2"]))
    assert same(whole, states(train(load_config(path, [*overrides, "data.workers=1", "resume=auto"]))))


def test_a_checkpoint_of_a_stream_is_evaluated_on_it_and_on_the_folder(path, shards, folder, tmp_path, capsys):
    run = train(load_config(path, [*shards, "stages=[{size: 8, epochs: 1}]", f"out={tmp_path / 'run'}"]))
    capsys.readouterr()
    said = []
    for more in ([], ["--data", "folder", "--root", str(folder)]):
        command = ["eval", str(run / "last.safetensors"), "--sizes", "8", "12", "--batch-size", "8", *more]
        assert main([*command, "--out", str(tmp_path / "plot.png")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "* trained at this size" in said[0]
    assert main(["eval", str(run / "last.safetensors"), "--sizes", "8", "--limit", "3"]) != 0
    assert "wds/stripes is read as a stream, of which a limit would take the first images" in capsys.readouterr().err


def test_workers_live_as_long_as_a_stage(path, monkeypatch):
    """One set of them for training and one for testing in each stage, whatever its epochs; none of the stage before."""
    begun, others = [], []
    start = torch.multiprocessing.Process.start

    def begin(self):
        others.append(sum(process.is_alive() for process in begun))
        begun.append(self)
        start(self)

    monkeypatch.setattr(torch.multiprocessing.Process, "start", begin)
    stages = "stages=[{size: 8, epochs: 3}, {size: 10, epochs: 2}]"
    train(load_config(path, [stages, "data.workers=2"]))
    assert others == [0, 1, 2, 3, 0, 1, 2, 3] and not any(process.is_alive() for process in begun)
