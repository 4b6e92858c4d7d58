"""The figure that a task is judged by: what it is called, and how it is written for people."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """More is better.

    Attributes:
        key: in logs, after the split that it is of: test_accuracy.
        name: in words.
        unit, scale, digits: it is written as so many times the figure, with so many digits after the point, and the unit.
        difference: what two of them differ by, in words.
        limits: of a plot's axis, in that unit; None: as the figures are.
    """

    key: str
    name: str
    unit: str
    scale: float
    digits: int
    difference: str
    limits: tuple[float, float] | None

    def number(self, figure: float) -> str:
        """Without the unit."""
        return f"{self.scale * figure:.{self.digits}f}"

    def show(self, figure: float) -> str:
        return f"{self.number(figure)} {self.unit}"


PERCENT: dict[str, Any] = {"unit": "%", "scale": 100.0, "digits": 1, "difference": "points", "limits": (0.0, 100.0)}
ACCURACY = Metric("accuracy", "accuracy", **PERCENT)
ATTRIBUTES = Metric("accuracy", "mean accuracy over the attributes", **PERCENT)
PSNR = Metric("psnr", "PSNR", unit="dB", scale=1.0, digits=2, difference="dB", limits=None)
METRICS = {metric.key: metric for metric in (ACCURACY, PSNR)}
