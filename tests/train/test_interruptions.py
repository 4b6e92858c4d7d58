"""Whatever ends a run, and whenever: the same command with resume=auto ends with the weights of a run that nothing ended."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from s4nd.train import engine, requests
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data.order import share, shuffled
from s4nd.train.engine import Interrupted, Trainer, train
from tests.train.test_engine import ALL_RANDOMNESS, Killed, kill_at_step, states

# 3 steps an epoch, 5 epochs, two stages; what is random, and what a step is made of.
WHOLE = [*ALL_RANDOMNESS, "accumulate=2"]


@pytest.fixture
def path(write_config):
    return write_config("s4nd_iso_tiny", d_state=4, drop_path_rate=0.3, proj_drop_rate=0.1)


@pytest.fixture
def uninterrupted(path, tmp_path):
    """run(*overrides) -> the weights at the end, averages too."""
    return lambda *overrides: states(train(load_config(path, [*WHOLE, *overrides, f"out={tmp_path / 'whole'}"])))


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def at_step(monkeypatch, step, act):
    """Do something before the step after `step` finished ones."""
    train_step = Trainer.train_step

    def acting(self, images, labels):
        if self.step == step:
            act()
        return train_step(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", acting)


@pytest.mark.parametrize("step", [1, 2, 5, 8, 10, 14])
def test_run_killed_within_an_epoch_goes_on_from_its_last_state(path, uninterrupted, monkeypatch, step):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, step)
        train(load_config(path, [*WHOLE, "save_every_steps=2"]))
    made = []
    with monkeypatch.context() as patch:
        train_step = Trainer.train_step
        patch.setattr(Trainer, "train_step", lambda self, *batch: made.append(self.step) or train_step(self, *batch))
        folder = train(load_config(path, [*WHOLE, "save_every_steps=2", "resume=auto"]))
    epoch, within = divmod(step, 3)
    assert made[0] == 3 * epoch + within // 2 * 2  # nothing is made twice that was saved
    assert_same(states(folder), uninterrupted())
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (folder.parent.parent / "whole" / "log.jsonl").read_text().splitlines()]
    for mine, other in zip(records, whole, strict=True):
        assert mine["train_loss"] == other["train_loss"] and mine["epoch"] == other["epoch"]


@pytest.mark.parametrize("files", [4, 8, 13])
def test_disk_that_is_full_keeps_the_last_good_state(path, uninterrupted, monkeypatch, files):
    """Whichever file it is that no longer fits: a state, the weights or a log."""
    written, fsync = [], os.fsync

    def fill(number):
        if len(written) == files:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(number)
        fsync(number)

    config = [*WHOLE, "save_every_steps=2"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left on device: .*s4nd_iso_tiny/"):
        patch.setattr(os, "fsync", fill)
        train(load_config(path, config))
    state = torch.load(load_config(path).out + "/last.state", weights_only=True)  # whole, though not of the last step
    assert 0 < state["step"] < 15
    assert not list(Path(load_config(path).out).glob("*.tmp"))
    assert_same(states(train(load_config(path, [*config, "resume=auto"]))), uninterrupted())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_scale_of_the_loss_is_among_what_goes_on(path, uninterrupted, monkeypatch, amp):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, 4)
        train(load_config(path, [*WHOLE, "save_every_steps=1", f"amp={amp}"]))
    state = torch.load(load_config(path).out + "/last.state", weights_only=True)
    assert bool(state["scaler"]) == (amp == "fp16")
    if state["scaler"]:
        trainer = Trainer(load_config(path, [*WHOLE, f"amp={amp}"]), torch.device("cpu"))
        trainer.restore(state | {"scaler": state["scaler"] | {"scale": 1024.0}})
        assert trainer.learner.steps().scaler.get_scale() == 1024
    assert_same(states(train(load_config(path, [*WHOLE, f"amp={amp}", "resume=auto"]))), uninterrupted(f"amp={amp}"))


OTHERS = {
    "sgd": [
        "optim.args={momentum: 0.8}",
        "schedule.sched=step",
        "schedule.decay_epochs=0.5",
        "schedule.decay_rate=0.7",
    ],
    "lamb": ["optim.layer_decay=0.6", "schedule.sched=poly", "schedule.decay_rate=1"],
    "lion": ["schedule.sched=wsd", "schedule.decay_epochs=1", "schedule.warmup_epochs=0.5", "schedule.warmup_lr=0.001"],
    "nmuon": ["schedule.sched=constant"],
}


@pytest.mark.parametrize("opt", OTHERS)
def test_any_optimizer_and_schedule_goes_on_within_an_epoch(path, uninterrupted, monkeypatch, opt):
    options = [f"optim.opt={opt}", *OTHERS[opt]]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, 8)  # in the middle of the third epoch
        train(load_config(path, [*WHOLE, *options, "save_every_steps=1"]))
    folder = train(load_config(path, [*WHOLE, *options, "save_every_steps=1", "resume=auto"]))
    assert_same(states(folder), uninterrupted(*options))


def test_sigterm_saves_and_stops(path, uninterrupted, monkeypatch):
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match=r"stopped by SIGTERM after step 5, in epoch 2"),
    ):
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(load_config(path, WHOLE))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert torch.load(load_config(path).out + "/last.state", weights_only=True)["step"] == 5
    assert_same(states(train(load_config(path, [*WHOLE, "resume=auto"]))), uninterrupted())


def test_command_stopped_by_sigterm_says_how_to_go_on(path, monkeypatch, capsys):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["train", str(path), *WHOLE]) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 2, in epoch 1" in (said := capsys.readouterr().err)
    assert "continue with resume=auto" in said


def test_sigusr1_saves_and_goes_on(path, uninterrupted, monkeypatch):
    saved, save_state = [], engine.save_state
    monkeypatch.setattr(engine, "save_state", lambda *args: saved.append(args[2]["step"]) or save_state(*args))
    at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    folder = train(load_config(path, WHOLE))
    assert saved == [3, 5, 6, 9, 12, 15]
    monkeypatch.undo()
    assert_same(states(folder), uninterrupted())


@pytest.mark.parametrize("what", ["cut short", "gone"])
def test_damaged_newest_state_gives_way_to_the_one_before(path, uninterrupted, monkeypatch, caplog, what):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, 8)
        train(load_config(path, [*WHOLE, "save_every_steps=1"]))
    newest = load_config(path).out + "/last.state"
    if what == "gone":  # a kill between the two names
        os.remove(newest)
    else:
        os.truncate(newest, os.path.getsize(newest) // 2)
    with caplog.at_level(logging.WARNING, "s4nd"):
        folder = train(load_config(path, [*WHOLE, "resume=auto"]))
    assert "the state before it is taken" in caplog.text
    assert_same(states(folder), uninterrupted())


def test_state_is_not_saved_after_a_loss_that_is_not_finite(path, monkeypatch):
    def poison():
        for p in trainer.learner.model.parameters():
            p.data.fill_(float("nan"))

    trainer = None

    def begin(self, *args, enter=Trainer.enter):
        nonlocal trainer
        trainer = self
        enter(self, *args)

    monkeypatch.setattr(Trainer, "enter", begin)
    at_step(monkeypatch, 2, poison)
    with pytest.raises(engine.DivergedError, match="not finite at step 3"):
        train(load_config(path, [*WHOLE, "save_every_steps=1"]))
    assert torch.load(load_config(path).out + "/last.state", weights_only=True)["step"] == 2


COMMAND = [sys.executable, "-m", "s4nd.train"]


def environment(**more):
    python_path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path} | more


@pytest.mark.slow
def test_command_killed_at_random_moments_until_it_ends(path, uninterrupted):
    """SIGKILL of the real command, at moments from its start to its end."""
    command = [*COMMAND, str(path), *WHOLE, "save_every_steps=1", "resume=auto"]
    rng, status = np.random.default_rng(0), None
    for kill in (True, True, True, False):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            status = process.wait(rng.uniform(4, 12) if kill else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            status = process.wait()
    assert status == 0
    assert_same(torch_states(path), uninterrupted())


def torch_states(path):
    return states(Path(load_config(path).out))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_of_which_one_is_ended_go_on_together(path, number, tmp_path):
    """torchrun starts them again by itself after a kill; after SIGTERM all have saved and stopped at one step."""
    overrides = [*WHOLE, "save_every_steps=1", "resume=auto", "batch_size=16"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "-m", "s4nd.train", str(path), *overrides]

    def run(out, kill):
        restarts = ["--max-restarts", "1"]
        command = [*torchrun[:3], *restarts, *torchrun[3:], f"out={out}"]
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kill:
            deadline = time.monotonic() + 120
            while not (out / "last.state").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(workers[-1]), number)
        said = process.communicate(timeout=300)
        return process.returncode, said

    status, said = run(tmp_path / "killed", kill=True)
    if status:  # SIGTERM, twice: torchrun started what was stopped once more, or not
        status, said = run(tmp_path / "killed", kill=False)
    assert status == 0, said
    status, said = run(tmp_path / "left", kill=False)
    assert status == 0, said
    assert_same(states(tmp_path / "killed"), states(tmp_path / "left"))


@pytest.mark.parametrize(
    "count, batch, world, micro_batches", [(40, 16, 2, 2), (40, 8, 1, 4), (33, 16, 2, 4), (64, 32, 4, 2)]
)
def test_micro_batches_are_pairs_of_the_whole_batch(count, batch, world, micro_batches):
    """Mixup pairs image i with image B - 1 - i of what it is given: of a micro-batch as of the whole batch."""
    whole = np.array(share(shuffled(count, 3), batch, 0, 1)).reshape(-1, batch)
    pairs = [{frozenset(pair) for pair in zip(row, row[::-1], strict=True)} for row in whole.tolist()]
    found = [set() for _ in pairs]
    for rank in range(world):
        own = np.array(share(shuffled(count, 3), batch, rank, world, micro_batches=micro_batches))
        for step, row in enumerate(own.reshape(len(whole), micro_batches, -1)):
            for micro in row.tolist():
                found[step] |= {frozenset(pair) for pair in zip(micro, micro[::-1], strict=True)}
    assert found == pairs


def test_wish_of_one_process_is_known_to_all_after_the_next_step(monkeypatch):
    """The answer is that of the question before, which every process has asked."""

    class Work:
        def wait(self):
            return True

    heard = requests.Requests()
    heard.group, others = object(), iter([0, requests.STOP, 0])

    def all_reduce(wish, *_, **__):
        wish.fill_(max(int(wish), next(others)))
        return Work()

    monkeypatch.setattr(requests.dist, "all_reduce", all_reduce)
    assert [heard.agreed(), heard.agreed(), heard.agreed()] == [0, 0, requests.STOP]
