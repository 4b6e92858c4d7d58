"""How the S4ND layers of a model meet a grid: the band they are limited to, and the grid they count as trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from s4nd.nn.s4nd import S4ND
from s4nd.nn.sampling import RESAMPLE, SampledModule, per_axis

# For whole models: the first layer, which sees the image, holds, and those after it dilate (s4nd/conv/dilated.py says why).
HOLD_DILATE = "hold+dilate"
MODEL_RESAMPLE = (*RESAMPLE, HOLD_DILATE)


def layers(model: nn.Module) -> Iterator[S4ND]:
    """Every S4ND layer of a model, itself included."""
    return (module for module in model.modules() if isinstance(module, S4ND))


def set_bandlimit(model: nn.Module, bandlimit: float | None) -> None:
    """Limit every S4ND layer to a fraction of the Nyquist frequency (1 is Nyquist itself); None lifts the limit."""
    for layer in layers(model):
        layer.bandlimit = bandlimit


def set_resample(model: nn.Module, resample: str | Sequence[str]) -> None:
    """Set how a model's layers come to another grid than the trained one.

    Args:
        model: with S4ND layers, or convolutions after `s4nd.models.hold_convolutions`.
        resample: "continuous", "hold", "fold", "dilate" (see S4ND), or "hold+dilate": "hold" for the first layer, in the order
            in which modules are registered, and "dilate" for those after it. One value or one per axis.

    Raises:
        ValueError: another word, a layer that has no such method (fold is not for s4, convolutions hold or dilate), or a model
            without such layers. The model is then as it was.
    """
    sampled = [module for module in model.modules() if isinstance(module, SampledModule)]
    if not sampled:
        raise ValueError(
            f"resample={resample!r} needs S4ND layers, or convolutions after s4nd.models.hold_convolutions: there are none"
        )
    before = [layer.sampling for layer in sampled]
    try:
        for i, layer in enumerate(sampled):
            methods = per_axis("resample", resample, layer.sampling.ndim)
            layer.resample = tuple(
                ("dilate" if i else "hold") if method == HOLD_DILATE else method for method in methods
            )
    except ValueError:
        for layer, sampling in zip(sampled, before, strict=True):
            layer.sampling = sampling
        raise


@torch.no_grad()
def set_base_size(model: nn.Module, size: int | Sequence[int | None] | None, *, rescale: bool = False) -> None:
    """Declare the grid at every S4ND layer of the model to be the trained one.

    Args:
        size: samples along each axis at the layers, one value or one per axis; None: the axis extends.
        rescale: False only declares it: at `size` the layer now has rate 1, whatever it had before. True also multiplies dt
            by the rate that the layer had at `size`, and divides l_max by it, so that without a bandlimit it computes what it
            did: its kernels are re-sampled for good. Kernels that are not continuous (`resample`) cannot be: they stay those
            of the grid on which they were trained, and go on so, and the layer computes what it did too.
    """
    for layer in layers(model):
        new, windows = list(per_axis("base_size", size, layer.ndim)), list(layer.l_max)
        if rescale:
            for axis, (kernel, n, window) in enumerate(zip(layer.kernels, new, layer.l_max, strict=True)):
                if layer.sampling.method(axis) != "continuous":
                    new[axis] = layer.base_size[axis]
                elif n is not None:
                    rate = layer.rate(axis, n)
                    kernel.rescale(rate)
                    windows[axis] = window and max(1, round(window / rate))
        layer.sampling = replace(layer.sampling, base_size=tuple(new), l_max=tuple(windows))
