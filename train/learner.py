"""What learns: a model and its averages and, stage by stage, their resolution, their optimizer, its schedule and steps."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s4nd.ops import BackendError

from .checkpoint import load_weights
from .config import Config
from .initial import initialise
from .model import REFUSALS, build_model, check_runs, enter_stage, to_input
from .optim import create_optimizer, create_schedule
from .processes import Place, from_first, sum_over_processes
from .sharding import is_sharded, load_moments, own, shard, whole_moments, whole_weights
from .state import STATE_FILE
from .step import Step
from .task import Task


class Learner:
    """The model of a run in one process, whether the processes hold it whole or divide it.

    Args:
        classes: names of its classes, or of its attributes.
        task: what it is to answer.

    Attributes:
        model: drawn from the global generator.
        ema: timm's averages of it, or None.
        stage: the present one; -1 before the first.
    """

    def __init__(self, config: Config, classes: Sequence[str], task: Task, place: Place):
        self.config, self.classes, self.task, self.place = config, classes, task, place
        self.layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.model = build_model(config, len(classes)).to(place.device).to(memory_format=self.layout)
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self.criterion = task.criterion(label_smoothing=config.label_smoothing)
        mixing: dict[str, Any] = {"mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix, "prob": config.mixup_prob}
        mixing |= {"switch_prob": config.mixup_switch_prob, "mode": config.mixup_mode}
        self.mixup = task.mixup(len(classes), **mixing) if config.mixup or config.cutmix else None
        self.stage = -1
        self.update: Step | None = None

    def initialise(self) -> None:
        """Begin with the weights that config.init names."""
        done = from_first(lambda: initialise(self.model, self.config, self.classes, self.task.name))
        if done is None:
            return
        weights = from_first(lambda: {key: value.cpu() for key, value in self.model.state_dict().items()})
        for model in self.models():  # averages begin with what they average
            model.load_state_dict(weights)
        if self.place.rank == 0:
            print(done, flush=True)

    def check_stages(self) -> None:
        """The optimizer, and every stage on one black image, before the first one takes its time.

        Raises:
            ValueError: the model refuses the size, or something else, of a stage, which is named, or a layer decay, or the task
                needs another output.
        """
        model, data = copy.deepcopy(self.model), self.config.data
        create_optimizer(model, self.config.optim)
        clip = [] if data.sampling() is None else [data.frames]
        for i, stage in enumerate(self.config.stages):
            try:
                enter_stage(model, self.config, i)
                for size in [stage.size, *(stage.sizes or [])]:
                    images = torch.zeros(1, 3, *clip, size, size, dtype=torch.uint8)
                    output = check_runs(model, to_input(images, model, self.place.device), self.config.model.name)
                    self.task.check(output, len(self.classes), size, self.config.model.name)
            except BackendError:  # at no stage
                raise
            except REFUSALS as error:
                raise ValueError(f"stages.{i}, at {stage.size} pixels: {error}") from error

    def models(self) -> list[nn.Module]:
        """The model and, if they are kept, its averages."""
        return [self.model] + ([self.ema.module] if self.ema else [])

    def weights(self) -> nn.Module:
        """The model to use: the averaged one if there is one."""
        return self.ema.module if self.ema else self.model

    def enter(self, stage: int, steps_per_epoch: int, weights: Sequence[dict[str, Tensor]] | None = None) -> None:
        """Begin a stage: another resolution and bandlimit, an optimizer and a schedule that start anew.

        Args:
            weights: of `models()`, to go on with.
        """
        self._gather()
        for model in self.models():  # all follow the stage
            enter_stage(model, self.config, stage)
        if weights is not None:
            for model, state in zip(self.models(), weights, strict=True):
                load_weights(model, state, STATE_FILE)
        if self.place.world_size > 1 and self.config.parallel == "fsdp":
            for model in self.models():
                shard(model, self.place.world_size, self.place.device)
        # A change of resolution may re-scale or replace parameters, so the optimizer's moments do not carry over.
        self.optimizer = create_optimizer(self.model, self.config.optim)
        epochs = self.config.stages[stage].epochs
        self.schedule = create_schedule(self.optimizer, self.config.schedule, epochs, steps_per_epoch)
        self.stage, self.update = stage, None

    def _gather(self) -> None:
        """Make models that are divided among the processes whole again."""
        if not is_sharded(self.model):
            return
        states = [whole_weights(model) for model in self.models()]
        self.model, *averages = (build_model(self.config, len(self.classes), self.stage) for _ in states)
        for model, state in zip([self.model, *averages], states, strict=True):
            model.to(self.place.device).to(memory_format=self.layout)
            load_weights(model, state, "the stage before")
        if self.ema:
            self.ema.module = averages[0].eval()

    def steps(self) -> Step:
        """The steps of the stage; made at the first one, when the weights are what they are to be."""
        if self.update is None:
            forward: Any = torch.compile(self.model) if self.config.compile else self.model
            if self.place.world_size > 1 and not is_sharded(self.model):
                options: dict[str, Any] = {"broadcast_buffers": False} if self.config.distribute_bn else {}
                forward = DistributedDataParallel(forward, **options)
            self.update = Step(
                self.model,
                forward,
                self.optimizer,
                self.criterion,
                self.config,
                self.place.device,
                mix=self.mixup,
                ema=self.ema,
                rank=self.place.rank,
            )
        return self.update

    def lr(self) -> float:
        """The learning rate of the groups at optim.lr."""
        return next(group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups if group["lr_scale"])

    def share_statistics(self) -> None:
        """At the end of an epoch: the same statistics of batch norms in all processes, as config.distribute_bn says."""
        if self.place.world_size > 1 and (self.config.distribute_bn or is_sharded(self.model)):
            distribute_bn(self.model, self.place.world_size, reduce=self.config.distribute_bn == "reduce")

    def is_finite(self) -> bool:
        """No weight is NaN or infinite, in any process."""
        bad = [any(not own(p).isfinite().all() for p in self.model.parameters())]
        return not any(sum_over_processes(bad, self.place.device))

    def state(self) -> dict:
        """What `restore` needs, whole, as tensors and plain containers; all processes must ask for it."""
        model, *ema = (whole_weights(model) for model in self.models())
        moments = whole_moments(self.model, self.optimizer)
        scaler = self.steps().scaler.state_dict()
        return {"model": model, "ema": ema[0] if ema else None, "optimizer": moments, "scaler": scaler}

    def restore(self, state: dict, stage: int, steps_per_epoch: int) -> None:
        """Go on in a stage with what `state` gave."""
        self.enter(stage, steps_per_epoch, [state["model"]] + ([state["ema"]] if self.ema else []))
        load_moments(self.model, self.optimizer, state["optimizer"])
        self.steps().scaler.load_state_dict(state.get("scaler", {}))
