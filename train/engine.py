"""The training loop: stages of (size, epochs, bandlimit), evaluated, logged and saved after every epoch.

Launched by `torchrun --nproc-per-node N -m s4nd.train.cli train CONFIG` it is data-parallel: `batch_size` is the number
of images or clips per step over all processes, and every step sees the same images as with one process.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3, random_seed
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from s4nd.ops import BackendError

from .checkpoint import Meta, load_weights, save_checkpoint
from .config import Config
from .data import build_dataset, make_loader, split_off
from .data.names import difference
from .device import choose_device
from .evaluate import Score, evaluate
from .initial import initialise
from .logs import RunLog, summary_line
from .model import REFUSALS, build_model, check_runs, enter_stage, normalisation, to_input
from .optim import create_optimizer, create_schedule
from .processes import from_first, join, leave, sum_over_processes
from .state import STATE_FILE, carry_over, check_classes, find_state, save_state


class DivergedError(RuntimeError):
    """The loss or the weights are no longer finite."""


def train(config: Config) -> Path:
    """Train, or continue, the run of a config; returns its directory.

    With float32 on the CPU a continued run ends with the same weights, bit for bit, as one that was never interrupted.

    Raises:
        ValueError, FileNotFoundError: the run directory, the data or the model does not fit the config.
        DivergedError: loss or weights became NaN or infinite; the checkpoints of the last good epoch are kept.
    """
    folder = Path(config.out)
    place = join(choose_device(config.device))
    try:
        state = from_first(lambda: find_state(config))
        trainer = Trainer(config, *place)
        trainer.check_stages()
        if state is None:
            trainer.initialise()
        else:
            trainer.restore(state)
        if place.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            if state is not None:
                carry_over(config, state)
        trainer.fit(folder)
    finally:
        leave()
    return folder


class Trainer:
    """A run in one process: the model, its averages and how far it has come.

    Attributes:
        classes: their names, in the order of the model's answers.
        epoch: epochs finished, over all stages.
        step: optimizer steps made, over all stages.
        best: the highest accuracy of the present stage, on `judges`.
        judges: the images that choose best.safetensors: a part of the training split, or the test split.
    """

    def __init__(self, config: Config, device: torch.device, rank: int = 0, world_size: int = 1):
        mixes = bool(config.mixup or config.cutmix)
        unit = world_size * (2 if mixes else 1)
        if config.batch_size % unit:
            raise ValueError(f"batch_size={config.batch_size} must be a multiple of {unit} (processes, pairs to mix)")
        self.config, self.device, self.rank, self.world_size = config, device, rank, world_size
        if rank > 0:
            dist.barrier()  # the first process alone downloads what is to be downloaded
        data = config.data
        source = {"lists": data.lists, "official_split": data.split}
        self.train_set = build_dataset(data.name, data.root, "train", limit=data.train_limit, **source)
        if data.val_fraction is None:
            self.judges = build_dataset(data.name, data.root, "test", limit=data.test_limit, **source)
            self.split = "test"
        else:
            try:
                (self.train_set, self.judges), self.split = split_off(self.train_set, data.val_fraction), "validation"
            except ValueError as error:
                raise ValueError(f"data.val_fraction={data.val_fraction:g}: {error}") from None
        if rank == 0 and world_size > 1:
            dist.barrier()
        self.classes = list(self.train_set.classes)
        odd = difference(self.classes, self.judges.classes, "the training data", "the test data")
        if odd:
            raise ValueError(f"training and test data must have the same classes: {odd}")
        random_seed(config.seed)
        self.model = build_model(config, len(self.classes)).to(device)
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        mixing = {"mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix, "prob": config.mixup_prob}
        mixing |= {"switch_prob": config.mixup_switch_prob, "mode": config.mixup_mode}
        classes = len(self.classes)
        self.mixup = Mixup(**mixing, label_smoothing=0.0, num_classes=classes) if mixes else None  # criterion smooths
        self.epoch = self.step = 0
        self.stage, self.best = -1, -1.0

    def initialise(self) -> None:
        """Begin with the weights that config.init names."""
        done = from_first(lambda: initialise(self.model, self.config, self.classes))
        if done is None:
            return
        weights = from_first(lambda: {key: value.cpu() for key, value in self.model.state_dict().items()})
        for model in [self.model] + ([self.ema.module] if self.ema else []):
            model.load_state_dict(weights)
        if self.rank == 0:
            print(done, flush=True)

    def check_stages(self) -> None:
        """Every stage on one black image, before the first one takes its time.

        Raises:
            ValueError: the model refuses the size, or something else, of a stage; names it.
        """
        model, data = copy.deepcopy(self.model), self.config.data
        clip = [] if data.sampling() is None else [data.frames]
        for i, stage in enumerate(self.config.stages):
            images = torch.zeros(1, 3, *clip, stage.size, stage.size, dtype=torch.uint8)
            try:
                enter_stage(model, self.config, i)
                check_runs(model, to_input(images, model, self.device), self.config.model.name)
            except BackendError:  # at no stage
                raise
            except REFUSALS as error:
                raise ValueError(f"stages.{i}, at {stage.size} pixels: {error}") from error

    def fit(self, folder: Path) -> None:
        """Train the epochs that are left, and write into `folder`."""
        log = RunLog(folder, self.epoch) if self.rank == 0 else None
        sampling = self.config.data.sampling()
        unit, protocol = ("images", {}) if sampling is None else ("clips", {"protocol": sampling.protocol()})
        if log is not None and protocol:
            print(protocol["protocol"], flush=True)
        for stage, epoch_of_stage in self.plan()[self.epoch :]:
            if stage != self.stage:
                self.enter(stage)
            start = time.perf_counter()
            loss, images = self.train_epoch(epoch_of_stage)
            seconds = time.perf_counter() - start
            score = self.test()
            self.epoch += 1
            record = {"epoch": self.epoch, "stage": stage, "size": self.config.stages[stage].size}
            record |= {"train_loss": loss, f"{self.split}_loss": score.loss, f"{self.split}_accuracy": score.accuracy}
            record |= {"lr": self.lr()}
            record |= {"seconds": seconds, f"{unit}_per_second": images / seconds} | protocol
            if log is not None:
                self.save(folder, score)
                log.write(record)
                save_state(folder, self.config, self.state())  # last: from here on the epoch counts as done
                print(summary_line(record, len(self.plan())), flush=True)
        if log is not None:
            log.close()

    def plan(self) -> list[tuple[int, int]]:
        """(stage, epoch within the stage) of every epoch of the run."""
        return [(i, epoch) for i, stage in enumerate(self.config.stages) for epoch in range(stage.epochs)]

    def enter(self, stage: int) -> None:
        """Begin a stage: another resolution and bandlimit, an optimizer and a schedule that start anew."""
        for model in [self.model] + ([self.ema.module] if self.ema else []):
            enter_stage(model, self.config, stage)
        # A change of resolution may re-scale or replace parameters, so the optimizer's moments do not carry over.
        self.optimizer = create_optimizer(self.model, self.config.optim)
        self.steps_per_epoch = len(self.loader(self.train_set, stage, train=True))
        epochs = self.config.stages[stage].epochs
        self.schedule = create_schedule(self.optimizer, self.config.schedule, epochs, self.steps_per_epoch)
        self.wrapped = None
        self.stage, self.best = stage, -1.0

    def parallel(self) -> nn.Module:
        """The model for training, over all processes; wrapped at the first step, when the weights are what they are to be."""
        if self.wrapped is None:
            self.wrapped = DistributedDataParallel(self.model) if self.world_size > 1 else self.model
        return self.wrapped

    def loader(self, dataset, stage: int, *, train: bool):
        """Batches of this process for the coming epoch."""
        data = self.config.data
        return make_loader(
            dataset,
            self.config.stages[stage].size,
            self.config.batch_size // self.world_size,
            train=train,
            seed=self.config.seed,
            epoch=self.epoch,
            workers=data.workers,
            hflip=data.hflip,
            pad=data.pad,
            transforms=data.transforms(),
            normalisation=normalisation(self.model),
            sampling=data.sampling(),
            rank=self.rank,
            world_size=self.world_size,
            skip_bad=True,
        )

    def train_epoch(self, epoch_of_stage: int) -> tuple[float, int]:
        """One epoch; returns the mean training loss and the number of images, over all processes."""
        self.model.train()
        # The whole randomness of the epoch follows from three numbers: an interrupted epoch can be repeated exactly.
        own, common = (
            int(np.random.SeedSequence([self.config.seed, self.epoch, rank]).generate_state(1)[0] // 2)
            for rank in (self.rank, 0)
        )
        random_seed(own)
        # timm's mixup draws from it: what is of a whole batch is alike in all processes, as in a single one
        np.random.seed(common if self.config.mixup_mode == "batch" else own)  # noqa: NPY002
        loss_sum, count = 0.0, 0
        for i, (images, labels) in enumerate(self.batches()):
            self.schedule.step_update(epoch_of_stage * self.steps_per_epoch + i)
            loss_sum, count = loss_sum + self.train_step(images, labels) * len(images), count + len(images)
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise DivergedError(f"weights are not finite at the end of epoch {self.epoch + 1}, step {self.step}")
        loss_sum, count = sum_over_processes([loss_sum, count], self.device)
        return loss_sum / max(count, 1), int(count)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches, with a progress bar on a terminal; even ones where images are mixed in pairs.

        Every process makes all steps, or the others would wait for it: the last batch stands in for those of which no
        image could be read.
        """
        loader = self.loader(self.train_set, self.stage, train=True)
        quiet = True if self.rank else None  # None: quiet unless on a terminal
        batch, steps, read = None, 0, 0
        for images, labels in tqdm(loader, desc=f"epoch {self.epoch + 1}", leave=False, disable=quiet):
            read += len(images)
            count = len(images) // 2 * 2 if self.mixup else len(images)  # odd after a damaged image was skipped
            if count:
                batch, steps = (images[:count], labels[:count]), steps + 1
                yield batch
        if batch is None:
            left = (
                f"mixup and cutmix need two images, {read} could be read"
                if read
                else "none of the training images could be read"
            )
            raise ValueError(f"epoch {self.epoch + 1} has no batch: {left}")
        for _ in range(self.steps_per_epoch - steps):
            yield batch

    def train_step(self, images: Tensor, labels: Tensor) -> float:
        """One update on uint8 images (B, 3, H, W), or clips (B, 3, T, H, W), and labels (B,); returns the loss."""
        images, labels = to_input(images, self.model, self.device), labels.to(self.device, non_blocking=True)
        if self.mixup:
            images, labels = self.mixup(images, labels)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp == "bf16"):
            logits = self.parallel()(images)
        loss = self.criterion(logits.float(), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {self.step + 1}, in epoch {self.epoch + 1}; the checkpoints of the last "
                "good epoch are kept. A smaller optim.lr, or optim.clip_grad=1, may help"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.optim.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        self.step += 1
        if self.ema:
            self.ema.update(self.model, step=self.step)
        return value

    def lr(self) -> float:
        """The learning rate of the groups at optim.lr."""
        return next(group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups if group["lr_scale"])

    def weights(self) -> nn.Module:
        """The model to use: the averaged one if there is one."""
        return self.ema.module if self.ema else self.model

    def test(self) -> Score:
        """Score of `weights()` on `judges`, at the size of the stage."""
        batches = self.loader(self.judges, self.stage, train=False)
        return evaluate(self.weights(), batches, self.device, at_once=self.config.batch_size // self.world_size)

    def save(self, folder: Path, score: Score) -> None:
        """Write last.safetensors, and best.safetensors if this epoch is the best of its stage."""
        kind = "ema" if self.ema else "model"
        meta = Meta(self.epoch, self.stage, score.accuracy, self.classes, kind, self.split)
        weights = self.weights().state_dict()
        if score.accuracy > self.best:
            self.best = score.accuracy
            save_checkpoint(folder / "best.safetensors", weights, self.config, replace(meta, best=True))
        save_checkpoint(folder / "last.safetensors", weights, self.config, meta)

    def state(self) -> dict:
        """What `restore` needs, as tensors and plain containers."""
        progress = {"epoch": self.epoch, "step": self.step, "stage": self.stage, "best": self.best}
        ema = self.ema.module.state_dict() if self.ema else None
        weights = {"model": self.model.state_dict(), "ema": ema, "optimizer": self.optimizer.state_dict()}
        return {**progress, "classes": self.classes, **weights}

    def restore(self, state: dict) -> None:
        """Continue from the end of an epoch; ValueError if it was of other classes."""
        check_classes(state, self.classes)
        self.enter(state["stage"])
        load_weights(self.model, state["model"], STATE_FILE)
        if self.ema:
            load_weights(self.ema.module, state["ema"], STATE_FILE)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
