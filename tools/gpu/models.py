"""Whole models for images and videos against timm's and torchvision's, in bfloat16 under autocast: eager and compiled."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from bench_measure import Contestant
from gpu.measure import timed
from gpu.settings import Row, Settings, Values
from torch import Tensor, nn

from s4nd import frozen

MODES = ("training", "evaluation")


def images(settings: Settings) -> Iterator[Row]:
    """A training step without the optimizer (forward, cross entropy, backward), and evaluation with kernels kept; each model in
    both memory layouts, then compiled in the faster of them."""
    shape = settings.image_batch, 3, settings.side, settings.side
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    yield from all_ways(settings, settings.images, shape, layouts)


def video(settings: Settings) -> Iterator[Row]:
    """Training steps and evaluation as of images, of clips: S4ND, I3D and S3D on ConvNeXt, and torchvision's S3D."""
    batch, frames, side = settings.clip
    yield from all_ways(
        settings, settings.clips, (batch, 3, frames, side, side), {"contiguous": torch.contiguous_format}
    )


def all_ways(
    settings: Settings, models: dict[str, Any], shape: tuple[int, ...], layouts: dict[str, torch.memory_format]
) -> Iterator[Row]:
    fastest: dict[tuple[str, str], tuple[float, torch.memory_format]] = {}

    def eager(label: str, mode: str, layout: torch.memory_format) -> Values:
        values = way(settings, models[label], shape, mode, layout)
        ms, _ = fastest.get((label, mode), (float("inf"), None))
        if values["ms"] < ms:
            fastest[label, mode] = values["ms"], layout
        return values

    def compiled(label: str, mode: str) -> Values:
        if not settings.compiles:
            raise RuntimeError("left out by --quick")
        _, layout = fastest.get((label, mode), (None, torch.contiguous_format))
        return way(settings, models[label], shape, mode, layout, compiled=True)

    for mode in MODES:
        for label in models:
            for name, layout in layouts.items():
                if "vit" in label and name != "contiguous":
                    continue  # its only convolution is that of the patches
                yield Row(f"{mode}, batch {shape[0]}", f"{label}, {name}", partial(eager, label, mode, layout))
    for mode in MODES:
        for label in models:
            yield Row(f"{mode}, batch {shape[0]}", f"{label}, compiled", partial(compiled, label, mode))


def way(
    settings: Settings,
    model: tuple[str, dict[str, Any]],
    shape: tuple[int, ...],
    mode: str,
    layout: torch.memory_format,
    *,
    compiled: bool = False,
) -> Values:
    """One model in one way."""
    torch.manual_seed(0)
    module = build(*model).to(settings.device, memory_format=layout).train(mode == "training")
    inputs = torch.randn(shape, device=settings.device).contiguous(memory_format=layout)
    function = module
    if compiled:
        torch.compiler.reset()
        function = torch.compile(module)
    run = step(function, module, inputs) if mode == "training" else evaluation(function, inputs)
    with frozen(module):  # in evaluation; with gradients nothing is kept
        values = timed(run, settings)
    best = min(values[k] for k in ("ms", "graph ms") if k in values)
    return values | {"per second": 1e3 * shape[0] / best}


def build(name: str, options: dict[str, Any]) -> nn.Module:
    if name == "s3d":
        from torchvision.models.video import s3d

        return s3d(num_classes=400)
    import s4nd.models  # noqa: F401, registers the models; inside: without einops everything else is measured

    return timm.create_model(name, **options)


def step(function: nn.Module, module: nn.Module, inputs: Tensor) -> Contestant:
    target = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)

    def run() -> None:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            logits = function(inputs)
        F.cross_entropy(logits.float(), target).backward()

    return Contestant(run, tuple(module.parameters()))


def evaluation(function: nn.Module, inputs: Tensor) -> Contestant:
    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(inputs.device.type, torch.bfloat16):
            return function(inputs)

    return Contestant(run)
