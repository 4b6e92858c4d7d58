"""One step of the optimizer: forward and backward over the micro-batches, then the update; nothing waits for the device.

What is to be known of a step stays on the device until somebody asks: the sum of the losses, the norm of the gradient, and the
first step whose loss was not finite.

All randomness of a step follows from (seed, epoch, step, process, micro-batch), so no state of a random generator need be kept.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from timm.utils import ModelEmaV3, random_seed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from s4nd.ops.precision import widest

from .config import Config
from .model import to_input
from .sharding import whole

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """The steps of one stage.

    Args:
        model: whose parameters the optimizer updates.
        forward: the same as it is to be run: wrapped for several processes, or compiled.
        optimizer: of the parameters.
        criterion: loss of logits and targets, a mean over the batch.
        config: accumulate, amp, channels_last and optim.clip_grad are used.
        mix: timm's Mixup, or None.
        ema: the averages of the model to update, or None.
        rank: number of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor],
        config: Config,
        device: torch.device,
        *,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        ema: ModelEmaV3 | None = None,
        rank: int = 0,
    ):
        self.model, self.forward, self.optimizer, self.criterion = model, forward, optimizer, criterion
        self.config, self.device, self.mix, self.ema, self.rank = config, device, mix, ema, rank
        # Gradients in float16 vanish below 6e-8: they are computed of a scaled loss.
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.begin()

    def begin(self, loss_sum: float = 0.0, images: int = 0) -> None:
        """A new epoch, or one that goes on."""
        self.loss_sum = torch.full((), loss_sum, dtype=widest(self.device), device=self.device)
        self.images = images
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)  # 0: none
        self.grad_norm: Tensor | None = None
        self.loss = torch.full_like(self.loss_sum, torch.nan)

    def read(self) -> tuple[int, float, float]:
        """The first step whose loss was not finite, 0 if there was none, the last step's loss and the norm of its gradient, NaN
        if it was not kept. It waits for the device, once."""
        norm = torch.full_like(self.loss, torch.nan) if self.grad_norm is None else self.grad_norm.to(self.loss)
        bad, loss, norm = torch.stack([self.bad_step.to(self.loss), self.loss, norm]).tolist()
        return int(bad), loss, norm

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, step: int, *, with_norm: bool = False) -> None:
        """One update.

        Args:
            images, targets: of this process: uint8 (B, 3, H, W), or clips (B, 3, T, H, W), and what the criterion takes.
            epoch, step: numbers of the epoch and of the step within the run, from which the randomness follows.
            with_norm: keep the norm of the gradient, which is there anyhow where it is clipped.
        """
        config = self.config
        ends = self._ends(len(images))
        self.optimizer.zero_grad()
        total = torch.zeros_like(self.loss_sum)
        for i, (x, y) in enumerate(zip(images.tensor_split(ends), targets.tensor_split(ends), strict=True)):
            self._seed(epoch, step, i)
            share = len(x) / len(images)
            with self._alone(i < len(ends)):
                loss = self._loss(x, y)
                self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if config.optim.clip_grad is not None:
            self.grad_norm = whole(nn.utils.clip_grad_norm_(parameters, config.optim.clip_grad))
        elif with_norm:
            self.grad_norm = whole(nn.utils.get_total_norm([p.grad for p in parameters]))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=step)
        self.loss = total
        self.loss_sum += total * len(images)
        self.images += len(images)
        first = (self.bad_step == 0) & ~total.isfinite()
        self.bad_step = torch.where(first, step, self.bad_step)

    def _ends(self, count: int) -> list[int]:
        """Where the micro-batches end, but for the last: none empty, and of pairs if images are mixed in pairs."""
        unit = 2 if self.mix is not None else 1
        n = max(1, min(self.config.accumulate, count // unit))
        return [count // unit * i // n * unit for i in range(1, n)]

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        images, targets = to_input(images, self.model, self.device), targets.to(self.device, non_blocking=True)
        if config.channels_last:
            images = images.contiguous(memory_format=CHANNELS_LAST[images.ndim])
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        dtype = AMP_DTYPES.get(config.amp)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.forward(images)
        return self.criterion(logits.float(), targets)

    def _seed(self, epoch: int, step: int, micro_batch: int) -> None:
        numbers = [self.config.seed, epoch, step]
        own, common = (
            int(np.random.SeedSequence([*numbers, *more]).generate_state(1)[0] // 2)
            for more in ((self.rank, micro_batch), (0, 0))
        )
        random_seed(own)
        # timm's mixup draws from it: what is of a whole batch is alike in all processes and micro-batches, as in one
        np.random.seed(common if self.config.mixup_mode == "batch" else own)  # noqa: NPY002

    def _alone(self, alone: bool) -> contextlib.AbstractContextManager:
        """Gradients of a micro-batch that is not the last one are not exchanged."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(not alone)
        if alone and isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return contextlib.nullcontext()


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
