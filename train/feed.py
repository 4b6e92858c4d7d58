"""The batches of a run, in one process: of the training images epoch by epoch, and of those that judge it."""

from collections.abc import Iterator, Sequence

from torch import Tensor
from tqdm import tqdm

from .config import Config
from .data import ImageLoader, make_loader
from .processes import Place
from .splits import Splits
from .state import Position


class Feed:
    """What a run sees. Its loaders, and their workers, live as long as a stage.

    Args:
        config: the run's; `batch_size` is the number of images or clips over all processes.
        splits: the data.
        normalisation: mean and standard deviation (C,) that the model expects of its input.
        place: which share of every batch is this process's.

    Attributes:
        unreadable: images of this process that could not be read, in the last epoch that was seen to its end.
    """

    def __init__(
        self, config: Config, splits: Splits, normalisation: tuple[Sequence[float], Sequence[float]], place: Place
    ):
        self.config, self.splits, self.place = config, splits, place
        self.rendering = config.data.rendering(normalisation)
        self.unreadable = 0
        self.loaders: dict[tuple[int, bool], ImageLoader] = {}

    def end_stage(self) -> None:
        """Let the loaders go, with their workers."""
        self.loaders.clear()

    def training(self, stage: int, epoch: int = 0, begin: int = 0) -> ImageLoader:
        """Training batches of this process in an epoch of the run, without the first `begin`."""
        return self.loader(stage, epoch, begin, train=True)

    def judging(self, stage: int, epoch: int = 0) -> ImageLoader:
        """Batches of this process of `splits.judges`, at the size of a stage."""
        return self.loader(stage, epoch, train=False)

    def loader(self, stage: int, epoch: int = 0, begin: int = 0, *, train: bool) -> ImageLoader:
        """The same one throughout a stage, at `begin` of an epoch."""
        if (stage, train) not in self.loaders:
            config = self.config
            self.loaders[stage, train] = make_loader(
                self.splits.train if train else self.splits.judges,
                config.stages[stage].size,
                config.batch_size // self.place.world_size,
                train=train,
                rendering=self.rendering,
                sizes=config.stages[stage].sizes,
                seed=config.seed,
                workers=config.data.workers,
                prefetch=config.data.prefetch,
                rank=self.place.rank,
                world_size=self.place.world_size,
                micro_batches=config.accumulate,
                skip_bad=True,
            )
        self.loaders[stage, train].set_epoch(epoch, begin)
        return self.loaders[stage, train]

    def steps(self, stage: int) -> int:
        """Steps of each epoch of a stage."""
        return len(self.training(stage))

    def batches(
        self, stage: int, epoch: int = 0, position: Position | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Training batches after `position`, each with the number of those consumed since; even ones where images are mixed
        in pairs. With a progress bar on a terminal.

        Every process makes all steps, or the others would wait for it: the last batch stands in for those of which no
        image could be read.

        Raises:
            ValueError: no image could be read, or none to mix with another.
        """
        position = position or Position()
        steps, made = self.steps(stage), position.steps
        loader = self.training(stage, epoch, position.batches)
        in_pairs = self.config.mixup or self.config.cutmix
        quiet = True if self.place.rank else None  # None: quiet unless on a terminal
        batch: tuple[Tensor, Tensor] | None = None
        read = 0
        for images, labels in tqdm(loader, desc=f"epoch {epoch + 1}", leave=False, disable=quiet):
            read += len(images)
            count = len(images) // 2 * 2 if in_pairs else len(images)  # odd after a damaged image was skipped
            if count:
                batch, made = (images[:count], labels[:count]), made + 1
                yield loader.consumed, *batch
        self.unreadable = loader.unreadable
        if batch is None and made == steps:
            return
        if batch is None:
            left = f"mixup and cutmix need two images, {read} could be read"
            why = left if read else "none of the training images could be read"
            raise ValueError(f"epoch {epoch + 1} has no batch: {why}")
        for _ in range(steps - made):
            yield loader.consumed, *batch
