"""The training loop: stages of (size, epochs, bandlimit), evaluated, logged and saved after every epoch.

Launched by `torchrun --nproc-per-node N -m s4nd.train CONFIG` it is data-parallel: `batch_size` is the number
of images or clips per step over all processes, and every step sees the same images as with one process.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import Tensor

from .checkpoint import Meta, save_checkpoint
from .config import Config
from .device import choose_device
from .evaluate import Score, evaluate
from .feed import Feed
from .files import alone_in
from .learner import Learner
from .logs import RunLog, opening, summary_line
from .model import normalisation
from .processes import Place, from_first, join, leave, sum_over_processes
from .records import Records
from .requests import STOP, Interrupted, Requests
from .sharding import whole_weights
from .splits import open_splits
from .state import STATE_FILE, Position, carry_over, check_classes, find_state, save_state
from .task import task_of
from .tracking import require_wandb

__all__ = ["DivergedError", "train"]


class DivergedError(RuntimeError):
    """The loss or the weights are no longer finite."""


def train(config: Config) -> Path:
    """Train, or continue, the run of a config; returns its directory.

    With float32 on the CPU a continued run ends with the same weights, bit for bit, as one that was never interrupted.

    Raises:
        ValueError, FileNotFoundError: the run directory, the data or the model does not fit the config.
        DivergedError: loss or weights became NaN or infinite; the checkpoints of the last good epoch are kept.
    """
    folder = config.folder
    if config.wandb is not None:
        require_wandb()
    place = join(choose_device(config.device))
    try:
        state = from_first(lambda: find_state(config))
        trainer = Trainer(config, *place)
        trainer.learner.check_stages()
        if state is None:
            trainer.learner.initialise()
        else:
            trainer.restore(state)
        with contextlib.ExitStack() as stack:

            def begin() -> None:
                stack.enter_context(alone_in(folder))
                if state is not None:
                    carry_over(config, state)

            from_first(begin)
            trainer.fit(folder)
    finally:
        leave()
    return folder


class Trainer:
    """A run in one process: the model, its averages and how far it has come.

    Attributes:
        splits: the data.
        task: what is to be answered, as the training data say.
        classes: names of the answers.
        majority: the answer that needs no image, of the training data.
        learner: the model, its averages and what updates them.
        feed: the batches that they see.
        records: what the log says.
        epoch: epochs finished, over all stages.
        step: optimizer steps made, over all stages.
        position: how far the epoch has come that is not finished.
        best: the highest metric of the present stage, on `splits.judges`.
    """

    def __init__(self, config: Config, device: torch.device, rank: int = 0, world_size: int = 1):
        unit = world_size * config.accumulate * (2 if config.mixup or config.cutmix else 1)
        if config.batch_size % unit:
            of = "processes, micro-batches to accumulate, pairs to mix"
            raise ValueError(f"batch_size={config.batch_size} must be a multiple of {unit} ({of})")
        self.config, self.place = config, Place(device, rank, world_size)
        self.splits = open_splits(config.data, self.place)
        self.task = task_of(self.splits.train.labels, config.data.noise)
        self.classes = self.task.names(self.splits.classes)
        self.majority = self.task.majority(self.splits.train.labels)
        random_seed(config.seed)
        self.learner = Learner(config, self.classes, self.task, self.place)
        self.feed = Feed(config, self.splits, normalisation(self.learner.model), self.place)
        self.records = Records(config, self.splits, self.task, self.majority, self.place)
        self.epoch = self.step = 0
        self.position, self.best = Position(), -math.inf

    def fit(self, folder: Path) -> None:
        """Train the epochs that are left, and write into `folder`.

        Raises:
            Interrupted: the run was asked to stop; its state is saved.
        """
        log = RunLog(folder, self.epoch, self.step, self.config) if self.place.rank == 0 else None
        if log is not None and self.records.about:
            print(opening(self.records.about, self.task.metric, self.splits.judge), flush=True)
        closing = contextlib.nullcontext() if log is None else contextlib.closing(log)
        with closing, Requests(self.config.save_every_minutes) as requests:
            for stage, epoch_of_stage in self.plan()[self.epoch :]:
                if stage != self.learner.stage:
                    self.enter(stage)
                start, images_before = time.perf_counter(), self.position.images
                loss, images = self.train_epoch(epoch_of_stage, lambda: self.between_steps(folder, log, requests))
                seconds = time.perf_counter() - start
                score = self.test()
                self.epoch += 1
                record = self.records.epoch(self.epoch, self.learner, loss, score, self.feed.unreadable)
                record |= self.records.rate(images - images_before, seconds) | self.records.about
                self.end_epoch(folder, log, record, score)
                requests.done()

    def end_epoch(self, folder: Path, log: RunLog | None, record: dict, score: Score) -> None:
        """Write the weights, the log and the state of an epoch."""
        weights, best = whole_weights(self.learner.weights()), score.accuracy > self.best
        self.best = max(self.best, score.accuracy)
        state = self.state()
        if log is not None:
            self.save(folder, weights, score, best)
            log.write(record)
            save_state(folder, self.config, state)  # last: from here on the epoch counts as done
            print(summary_line(record, len(self.plan())), flush=True)

    def between_steps(self, folder: Path, log: RunLog | None, requests: Requests) -> None:
        """After each step: log it, save the state, or stop, where that is due."""
        config = self.config
        if self.position.steps % config.log_every == 0:
            bad, loss, grad_norm = self.learner.steps().read()
            self.check_finite(bad)
            if log is not None:
                log.write_step(self.records.step(self.step, self.epoch + 1, self.learner, loss, grad_norm))
        wish = requests.agreed()
        if wish or (config.save_every_steps and self.position.steps % config.save_every_steps == 0):
            self.check_finite()  # NaN must not take the place of a good state
            state = self.state()
            if self.place.rank == 0:
                save_state(folder, config, state)
            requests.done()
        if wish == STOP:
            name = signal.Signals(requests.signal_number).name
            raise Interrupted(
                f"stopped by {name} after step {self.step}, in epoch {self.epoch + 1}; {folder / STATE_FILE} is saved: "
                "continue with resume=auto",
                requests.signal_number,
            )

    def plan(self) -> list[tuple[int, int]]:
        """(stage, epoch within the stage) of every epoch of the run."""
        return [(i, epoch) for i, stage in enumerate(self.config.stages) for epoch in range(stage.epochs)]

    def enter(self, stage: int) -> None:
        """Begin a stage."""
        self.feed.end_stage()
        self.steps_per_epoch = self.feed.steps(stage)
        self.learner.enter(stage, self.steps_per_epoch)
        self.best = -math.inf

    def train_epoch(self, epoch_of_stage: int, between_steps: Callable[[], None] = lambda: None) -> tuple[float, int]:
        """One epoch, or what is left of it; returns its mean training loss and number of images, over all processes."""
        self.learner.model.train()
        update, position, begin = self.learner.steps(), self.position, self.position.batches
        update.begin(position.loss_sum, position.images)
        self.records.begin(position.images)
        for consumed, images, labels in self.feed.batches(self.learner.stage, self.epoch, position):
            self.learner.schedule.step_update(epoch_of_stage * self.steps_per_epoch + position.steps)
            self.train_step(images, labels)
            position.steps, position.batches, position.images = position.steps + 1, begin + consumed, update.images
            between_steps()
        self.check_finite()
        if not self.learner.is_finite():
            raise DivergedError(f"weights are not finite at the end of epoch {self.epoch + 1}, step {self.step}")
        self.learner.share_statistics()
        self.position = Position()
        loss_sum, count = sum_over_processes([update.loss_sum.item(), update.images], self.place.device)
        return loss_sum / max(count, 1), int(count)

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One update on uint8 images (B, 3, H, W), or clips (B, 3, T, H, W), and labels (B,) of this process."""
        is_logged = (self.position.steps + 1) % self.config.log_every == 0
        self.learner.steps()(images, labels, self.epoch, self.step + 1, with_norm=is_logged)
        self.step += 1

    def check_finite(self, bad: int | None = None) -> None:
        """DivergedError if the loss of a step of this epoch was not finite, in any process.

        Args:
            bad: the first such step, 0 if there was none; None to ask the device, which is to wait for it.
        """
        bad = int(self.learner.steps().bad_step) if bad is None else bad
        if any(sum_over_processes([bad > 0], self.place.device)):
            at = f"step {bad}" if bad else f"a step up to {self.step}, in another process"
            raise DivergedError(
                f"the loss is not finite at {at}, in epoch {self.epoch + 1}; the checkpoints of the last "
                "good epoch are kept. A smaller optim.lr, or optim.clip_grad=1, may help"
            )

    def test(self) -> Score:
        """Score of `weights()` on `judges`, at the size of the stage."""
        batches = self.feed.judging(self.learner.stage, self.epoch)
        at_once = self.config.batch_size // self.place.world_size
        return evaluate(self.learner.weights(), batches, self.place.device, at_once, self.task)

    def save(self, folder: Path, weights: dict[str, Tensor], score: Score, best: bool) -> None:
        """Write last.safetensors, and best.safetensors if this epoch is the best of its stage."""
        kind = "ema" if self.learner.ema else "model"
        meta = Meta(self.epoch, self.learner.stage, score.accuracy, self.classes, kind, self.splits.judge)
        meta = replace(meta, task=self.task.name, majority=self.majority)
        if best:
            save_checkpoint(folder / "best.safetensors", weights, self.config, replace(meta, best=True))
        save_checkpoint(folder / "last.safetensors", weights, self.config, meta)

    def state(self) -> dict:
        """What `restore` needs, as tensors and plain containers; all processes must ask for it."""
        if self.position.steps:
            self.position.loss_sum = self.learner.steps().loss_sum.item()
        progress: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "stage": self.learner.stage,
            "best": self.best,
        }
        progress |= {"position": asdict(self.position), "classes": self.classes, "task": self.task.name}
        return progress | self.learner.state()

    def restore(self, state: dict) -> None:
        """Continue from the end of an epoch, or from within one; ValueError if it is of other classes or another task."""
        check_classes(state, self.classes, self.task.name)
        self.steps_per_epoch = self.feed.steps(state["stage"])
        self.learner.restore(state, state["stage"], self.steps_per_epoch)
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.position = Position(**state.get("position", {}))  # older versions saved at the end of an epoch alone
        if self.place.rank:  # the losses are those of the first process
            self.position.loss_sum, self.position.images = 0.0, 0
