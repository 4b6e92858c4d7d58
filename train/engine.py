"""The training loop: stages of (size, epochs, bandlimit), evaluated, logged and saved after every epoch.

Launched by `torchrun --nproc-per-node N -m s4nd.train CONFIG` it is data-parallel: `batch_size` is the number
of images or clips per step over all processes, and every step sees the same images as with one process.
"""

import contextlib
import copy
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from timm.utils import ModelEmaV3, distribute_bn, random_seed
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from s4nd.ops import BackendError

from .checkpoint import Meta, load_weights, save_checkpoint
from .config import Config
from .data import ImageLoader, build_dataset, make_loader, split_off
from .data.names import difference
from .device import choose_device
from .evaluate import Score, evaluate
from .files import alone_in
from .initial import initialise
from .logs import RunLog, memory_mib, opening, summary_line
from .model import REFUSALS, build_model, check_runs, enter_stage, normalisation, to_input
from .optim import create_optimizer, create_schedule
from .processes import from_first, join, leave, sum_over_processes
from .requests import STOP, Interrupted, Requests
from .sharding import is_sharded, load_moments, own, shard, whole_moments, whole_weights
from .state import STATE_FILE, Position, carry_over, check_classes, find_state, save_state
from .step import Step
from .task import task_of


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
        classes: their names, in the order of the model's answers; of a multi-label task the attributes.
        task: what is to be answered, as the training data say.
        majority: the answer that needs no image, of the training data.
        epoch: epochs finished, over all stages.
        step: optimizer steps made, over all stages.
        position: how far the epoch has come that is not finished.
        best: the highest accuracy of the present stage, on `judges`.
        judges: the images that choose best.safetensors: a part of the training split, or the test split.
    """

    def __init__(self, config: Config, device: torch.device, rank: int = 0, world_size: int = 1):
        mixes = bool(config.mixup or config.cutmix)
        unit = world_size * config.accumulate * (2 if mixes else 1)
        if config.batch_size % unit:
            of = "processes, parts to accumulate, pairs to mix"
            raise ValueError(f"batch_size={config.batch_size} must be a multiple of {unit} ({of})")
        self.config, self.device, self.rank, self.world_size = config, device, rank, world_size
        if rank > 0:
            dist.barrier()  # the first process alone downloads what is to be downloaded
        data = config.data
        source = {"lists": data.lists, "official_split": data.split, "reading": data.reading()}
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
        self.task = task_of(self.train_set.labels)
        self.majority = self.task.majority(self.train_set.labels)
        random_seed(config.seed)
        self.layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.model = build_model(config, len(self.classes)).to(device, memory_format=self.layout)
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self.criterion = self.task.criterion(label_smoothing=config.label_smoothing)
        mixing = {"mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix, "prob": config.mixup_prob}
        mixing |= {"switch_prob": config.mixup_switch_prob, "mode": config.mixup_mode}
        self.mixup = self.task.mixup(len(self.classes), **mixing) if mixes else None
        self.epoch = self.step = 0
        self.position, self.unreadable = Position(), 0
        self.stage, self.best = -1, -1.0
        self.loaders: dict[tuple[int, bool, int], ImageLoader] = {}  # of the present stage; their workers live as long

    def initialise(self) -> None:
        """Begin with the weights that config.init names."""
        done = from_first(lambda: initialise(self.model, self.config, self.classes, self.task.name))
        if done is None:
            return
        weights = from_first(lambda: {key: value.cpu() for key, value in self.model.state_dict().items()})
        for model in self.models():  # averages begin with what they average
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
            try:
                enter_stage(model, self.config, i)
                for size in [stage.size, *(stage.sizes or [])]:
                    images = torch.zeros(1, 3, *clip, size, size, dtype=torch.uint8)
                    check_runs(model, to_input(images, model, self.device), self.config.model.name)
            except BackendError:  # at no stage
                raise
            except REFUSALS as error:
                raise ValueError(f"stages.{i}, at {stage.size} pixels: {error}") from error

    def fit(self, folder: Path) -> None:
        """Train the epochs that are left, and write into `folder`.

        Raises:
            Interrupted: the run was asked to stop; its state is saved.
        """
        log = RunLog(folder, self.epoch, self.step) if self.rank == 0 else None
        sampling = self.config.data.sampling()
        unit, about = ("images", {}) if sampling is None else ("clips", {"protocol": sampling.protocol()})
        about |= self.task.about(self.majority, self.judges.labels)
        if log is not None and about:
            print(opening(about, self.task.metric, self.split), flush=True)
        with Requests(self.config.save_every_minutes) as requests:
            for stage, epoch_of_stage in self.plan()[self.epoch :]:
                if stage != self.stage:
                    self.enter(stage)
                start, images_before = time.perf_counter(), self.position.images
                loss, images = self.train_epoch(epoch_of_stage, lambda: self.between_steps(folder, log, requests))
                seconds = time.perf_counter() - start
                score = self.test()
                self.epoch += 1
                record = {"epoch": self.epoch, "stage": stage, "size": self.config.stages[stage].size}
                record |= {
                    "train_loss": loss,
                    f"{self.split}_loss": score.loss,
                    f"{self.split}_accuracy": score.accuracy,
                }
                record |= {"lr": self.lr(), "seconds": seconds}
                if unreadable := sum_over_processes([self.unreadable], self.device)[0]:
                    record["unreadable"] = int(unreadable)
                record |= {f"{unit}_per_second": (images - images_before) / seconds} | about
                weights, best = whole_weights(self.weights()), score.accuracy > self.best
                self.best = max(self.best, score.accuracy)
                state = self.state()
                if log is not None:
                    self.save(folder, weights, score, best)
                    log.write(record)
                    save_state(folder, self.config, state)  # last: from here on the epoch counts as done
                    print(summary_line(record, len(self.plan())), flush=True)
                requests.done()
        if log is not None:
            log.close()

    def between_steps(self, folder: Path, log: RunLog | None, requests: Requests) -> None:
        """After each step: log it, save the state, or stop, where that is due."""
        config = self.config
        if self.position.steps % config.log_every == 0:
            self.check_finite()
            if log is not None:
                log.write_step(self.step_record())
        wish = requests.agreed()
        if wish or (config.save_every_steps and self.position.steps % config.save_every_steps == 0):
            self.check_finite()  # NaN must not take the place of a good state
            state = self.state()
            if self.rank == 0:
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

    def models(self) -> list[nn.Module]:
        """The model and, if they are kept, its averages."""
        return [self.model] + ([self.ema.module] if self.ema else [])

    def gather(self) -> None:
        """Make models that are divided among the processes whole again."""
        if not is_sharded(self.model):
            return
        states = [whole_weights(model) for model in self.models()]
        self.model, *averages = (build_model(self.config, len(self.classes), self.stage) for _ in states)
        for model, state in zip([self.model, *averages], states, strict=True):
            model.to(self.device, memory_format=self.layout)
            load_weights(model, state, "the stage before")
        if self.ema:
            self.ema.module = averages[0].eval()

    def enter(self, stage: int, weights: Sequence[dict[str, Tensor]] | None = None) -> None:
        """Begin a stage: another resolution and bandlimit, an optimizer and a schedule that start anew.

        Args:
            weights: of `models()`, to go on with.
        """
        self.gather()
        self.loaders.clear()
        for model in self.models():  # all follow the stage
            enter_stage(model, self.config, stage)
        if weights is not None:
            for model, state in zip(self.models(), weights, strict=True):
                load_weights(model, state, STATE_FILE)
        if self.world_size > 1 and self.config.parallel == "fsdp":
            for model in self.models():
                shard(model, self.world_size, self.device)
        # A change of resolution may re-scale or replace parameters, so the optimizer's moments do not carry over.
        self.optimizer = create_optimizer(self.model, self.config.optim)
        self.steps_per_epoch = len(self.loader(self.train_set, stage, train=True))
        epochs = self.config.stages[stage].epochs
        self.schedule = create_schedule(self.optimizer, self.config.schedule, epochs, self.steps_per_epoch)
        self.update = None
        self.stage, self.best = stage, -1.0

    def steps(self) -> Step:
        """The steps of the stage; made at the first one, when the weights are what they are to be."""
        if self.update is None:
            forward = torch.compile(self.model) if self.config.compile else self.model
            if self.world_size > 1 and not is_sharded(self.model):
                options = {"broadcast_buffers": False} if self.config.distribute_bn else {}
                forward = DistributedDataParallel(forward, **options)
            self.update = Step(
                *(self.model, forward, self.optimizer, self.criterion, self.config, self.device),
                mix=self.mixup,
                ema=self.ema,
                rank=self.rank,
            )
        return self.update

    def loader(self, dataset, stage: int, *, train: bool) -> ImageLoader:
        """Batches of this process for the coming epoch, or for what is left of it; the same loader throughout a stage."""
        key = stage, train, id(dataset)
        if key not in self.loaders:
            data = self.config.data
            self.loaders[key] = make_loader(
                dataset,
                self.config.stages[stage].size,
                self.config.batch_size // self.world_size,
                train=train,
                rendering=data.rendering(normalisation(self.model)),
                sizes=self.config.stages[stage].sizes,
                seed=self.config.seed,
                workers=data.workers,
                prefetch=data.prefetch,
                rank=self.rank,
                world_size=self.world_size,
                parts=self.config.accumulate,
                skip_bad=True,
            )
        self.loaders[key].set_epoch(self.epoch, self.position.batches if train else 0)
        return self.loaders[key]

    def train_epoch(self, epoch_of_stage: int, between_steps: Callable[[], None] = lambda: None) -> tuple[float, int]:
        """One epoch, or what is left of it; returns its mean training loss and number of images, over all processes."""
        self.model.train()
        update, position, begin = self.steps(), self.position, self.position.batches
        update.begin(position.loss_sum, position.images)
        self.logged = time.perf_counter(), position.images
        for consumed, images, labels in self.batches():
            self.schedule.step_update(epoch_of_stage * self.steps_per_epoch + position.steps)
            self.train_step(images, labels)
            position.steps, position.batches, position.images = position.steps + 1, begin + consumed, update.images
            between_steps()
        self.check_finite()
        bad = [any(not own(p).isfinite().all() for p in self.model.parameters())]
        if any(sum_over_processes(bad, self.device)):
            raise DivergedError(f"weights are not finite at the end of epoch {self.epoch + 1}, step {self.step}")
        if self.world_size > 1 and (self.config.distribute_bn or is_sharded(self.model)):
            distribute_bn(self.model, self.world_size, reduce=self.config.distribute_bn == "reduce")
        self.position = Position()
        loss_sum, count = sum_over_processes([update.loss_sum.item(), update.images], self.device)
        return loss_sum / max(count, 1), int(count)

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One update on uint8 images (B, 3, H, W), or clips (B, 3, T, H, W), and labels (B,) of this process."""
        is_logged = (self.position.steps + 1) % self.config.log_every == 0
        self.steps()(images, labels, self.epoch, self.step + 1, with_norm=is_logged)
        self.step += 1

    def check_finite(self) -> None:
        """DivergedError if the loss of a step of this epoch was not finite, in any process. It waits for the device."""
        bad = int(self.steps().bad_step)
        if any(sum_over_processes([bad > 0], self.device)):
            at = f"step {bad}" if bad else f"a step up to {self.step}, in another process"
            raise DivergedError(
                f"the loss is not finite at {at}, in epoch {self.epoch + 1}; the checkpoints of the last "
                "good epoch are kept. A smaller optim.lr, or optim.clip_grad=1, may help"
            )

    def step_record(self) -> dict:
        """The step just made, for the log."""
        update, (time_before, images_before) = self.steps(), self.logged
        record = {"step": self.step, "epoch": self.epoch + 1, "loss": update.loss.item(), "lr": self.lr()}
        record |= {"grad_norm": update.grad_norm.item(), "memory_mib": memory_mib(self.device)}
        self.logged = time.perf_counter(), update.images
        rate = (update.images - images_before) / (self.logged[0] - time_before)
        return record | {"images_per_second": self.world_size * rate}

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Training batches after the number of those consumed so far, with a progress bar on a terminal; even ones where
        images are mixed in pairs.

        Every process makes all steps, or the others would wait for it: the last batch stands in for those of which no
        image could be read.
        """
        loader = self.loader(self.train_set, self.stage, train=True)
        quiet = True if self.rank else None  # None: quiet unless on a terminal
        batch, read, steps = None, 0, self.position.steps
        for images, labels in tqdm(loader, desc=f"epoch {self.epoch + 1}", leave=False, disable=quiet):
            read += len(images)
            count = len(images) // 2 * 2 if self.mixup else len(images)  # odd after a damaged image was skipped
            if count:
                batch, steps = (images[:count], labels[:count]), steps + 1
                yield loader.consumed, *batch
        self.unreadable = loader.unreadable
        if batch is None and steps < self.steps_per_epoch:
            left = (
                f"mixup and cutmix need two images, {read} could be read"
                if read
                else "none of the training images could be read"
            )
            raise ValueError(f"epoch {self.epoch + 1} has no batch: {left}")
        for _ in range(self.steps_per_epoch - steps):
            yield loader.consumed, *batch

    def lr(self) -> float:
        """The learning rate of the groups at optim.lr."""
        return next(group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups if group["lr_scale"])

    def weights(self) -> nn.Module:
        """The model to use: the averaged one if there is one."""
        return self.ema.module if self.ema else self.model

    def test(self) -> Score:
        """Score of `weights()` on `judges`, at the size of the stage."""
        batches = self.loader(self.judges, self.stage, train=False)
        at_once = self.config.batch_size // self.world_size
        return evaluate(self.weights(), batches, self.device, at_once, self.task)

    def save(self, folder: Path, weights: dict[str, Tensor], score: Score, best: bool) -> None:
        """Write last.safetensors, and best.safetensors if this epoch is the best of its stage."""
        kind = "ema" if self.ema else "model"
        meta = Meta(self.epoch, self.stage, score.accuracy, self.classes, kind, self.split)
        meta = replace(meta, task=self.task.name, majority=self.majority)
        if best:
            save_checkpoint(folder / "best.safetensors", weights, self.config, replace(meta, best=True))
        save_checkpoint(folder / "last.safetensors", weights, self.config, meta)

    def state(self) -> dict:
        """What `restore` needs, as tensors and plain containers; all processes must ask for it."""
        if self.position.steps:
            self.position.loss_sum = self.steps().loss_sum.item()
        progress = {"epoch": self.epoch, "step": self.step, "stage": self.stage, "best": self.best}
        progress |= {"position": asdict(self.position), "scaler": self.steps().scaler.state_dict()}
        model, *ema = (whole_weights(model) for model in self.models())
        weights = {"model": model, "ema": ema[0] if ema else None}
        weights["optimizer"] = whole_moments(self.model, self.optimizer)
        return {**progress, "classes": self.classes, "task": self.task.name, **weights}

    def restore(self, state: dict) -> None:
        """Continue from the end of an epoch, or from within one; ValueError if it is of other classes or another task."""
        check_classes(state, self.classes, self.task.name)
        self.enter(state["stage"], [state["model"]] + ([state["ema"]] if self.ema else []))
        load_moments(self.model, self.optimizer, state["optimizer"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.position = Position(**state.get("position", {}))  # older versions saved at the end of an epoch alone
        if self.rank:  # the losses are those of the first process
            self.position.loss_sum, self.position.images = 0.0, 0
        self.steps().scaler.load_state_dict(state.get("scaler", {}))
