"""What a model is trained to answer; the data say which task it is.

single-label    one of the classes
multi-label     each of the attributes by itself
restoration     the image without its noise, an answer for each pixel

Task            what a task is asked, see base.py
Metric          the figure that it is judged by
"""

import numpy as np

from .base import Task
from .labels import MultiLabel, SingleLabel, agreement
from .metric import ACCURACY, METRICS, PSNR, Metric
from .restoration import CHANNELS, Restoration, Unchanged

__all__ = [
    "ACCURACY",
    "CHANNELS",
    "METRICS",
    "PSNR",
    "TASKS",
    "Metric",
    "MultiLabel",
    "Restoration",
    "SingleLabel",
    "Task",
    "Unchanged",
    "agreement",
    "task_of",
]

TASKS: dict[str, Task] = {task.name: task for task in (SingleLabel(), MultiLabel(), Restoration())}


def task_of(labels: np.ndarray, noise: float | None = None) -> Task:
    """The task of a data set.

    Args:
        labels: (len,) of classes, or (len, K) of 0 and 1.
        noise: data.noise, with which it is to restore the images, whatever their labels are.
    """
    if noise is not None:
        return TASKS["restoration"]
    return TASKS["multi-label" if labels.ndim == 2 else "single-label"]
