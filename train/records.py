"""What the log says of an epoch and of a step."""

import time
from typing import Any

from .config import Config
from .evaluate import Score
from .learner import Learner
from .logs import memory_mib
from .processes import Place, sum_over_processes
from .splits import Splits
from .task import Task


class Records:
    """Of a run in one process.

    Attributes:
        about: what is said of the data and the task, beside the figures of each epoch.
    """

    def __init__(self, config: Config, splits: Splits, task: Task, majority: list[int], place: Place):
        self.config, self.judge, self.metric, self.place = config, splits.judge, task.metric, place
        sampling, noise = config.data.sampling(), config.data.noise
        self.unit = "images" if sampling is None else "clips"
        self.about: dict[str, Any] = {} if sampling is None else {"protocol": sampling.protocol()}
        self.about |= {} if noise is None else {"noise": noise}
        self.about |= task.about(majority, splits.judges.labels)

    def epoch(self, epoch: int, learner: Learner, loss: float, score: Score, unreadable: int) -> dict[str, Any]:
        """An epoch that was just finished; all processes must ask for it.

        Args:
            epoch: counted from 1.
            loss: mean over the training images.
            unreadable: files of this process that could not be read.
        """
        record: dict[str, Any] = {
            "epoch": epoch,
            "stage": learner.stage,
            "size": self.config.stages[learner.stage].size,
            "train_loss": loss,
            f"{self.judge}_loss": score.loss,
            f"{self.judge}_{self.metric.key}": score.accuracy,
            "lr": learner.lr(),
        }
        if found := sum_over_processes([unreadable], self.place.device)[0]:
            record["unreadable"] = int(found)
        return record

    def rate(self, images: int, seconds: float) -> dict[str, float]:
        """How fast an epoch was trained."""
        return {"seconds": seconds, f"{self.unit}_per_second": images / seconds}

    def begin(self, images: int) -> None:
        """From now on, after `images` of the epoch, the images of the next logged step are counted."""
        self._logged = time.perf_counter(), images

    def step(self, step: int, epoch: int, learner: Learner, loss: float, grad_norm: float) -> dict[str, Any]:
        """A step that was just made."""
        (time_before, images_before), images = self._logged, learner.steps().images
        record = {"step": step, "epoch": epoch, "loss": loss, "lr": learner.lr()}
        record |= {"grad_norm": grad_norm, "memory_mib": memory_mib(self.place.device)}
        self.begin(images)
        rate = (images - images_before) / (self._logged[0] - time_before)
        return record | {"images_per_second": self.place.world_size * rate}
