"""From a config to a timm model at the resolution of one stage, and from pixels to its input."""

from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from s4nd import S4ND, set_bandlimit, set_resample
from s4nd.ops import BackendError

from .config import Config, StageConfig
from .data.photos import LUMA, to_grey
from .registry import check_registered
from .task import CHANNELS

# What models raise at a size that they do not take: torch, timm and the layer.
REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)


def build_model(config: Config, num_classes: int, stage: int = 0) -> nn.Module:
    """A freshly initialised model for stage number `stage` of the config.

    Args:
        num_classes: of the data. With data.noise the model has an output for each pixel and channel in their place.

    Raises:
        ValueError: the name is not registered with timm, or the model does not know one of model.args.
    """
    name, grid = config.model.name, {"img_size": config.stages[stage].size}
    if config.data.sampling() is not None:
        grid["num_frames"] = config.data.frames
    check_registered(name, "model.name")
    head: dict[str, Any] = {"num_classes": num_classes}
    if config.data.noise is not None:
        head = {"num_classes": CHANNELS, "global_pool": ""}
    args = {"pretrained": False, **head, **config.model.args}
    try:
        model = _create(name, args, grid)
    except TypeError as error:
        raise ValueError(f"model {name} does not take model.args {config.model.args}: {error}") from error
    _set_sampling(model, config, stage)
    mean, std = normalisation(model)
    cfg: Any = model.pretrained_cfg
    cfg.update(mean=mean, std=std)  # of as many channels as the model has, for whoever asks the model
    return model


def _create(name: str, args: dict, grid: dict[str, int]) -> nn.Module:
    try:
        return timm.create_model(name, **{**grid, **args})
    except TypeError as error:
        if not any(key in str(error) for key in grid):
            raise
        return timm.create_model(name, **args)  # fully convolutional models of timm know no size


def enter_stage(model: nn.Module, config: Config, stage: int) -> None:
    """Bring a model of another stage to stage number `stage`: its resolution, its bandlimit and its resampling method.

    The kernels are re-sampled for good, so that those of the new grid are trained, unless the stage says another
    method than the continuous one: then they stay those of the grid that they have.

    Raises:
        ValueError: a bandlimit or a resampling method for a model without S4ND layers.
    """
    for key in ("bandlimit", "resample"):
        if getattr(config.stages[stage], key) is not None and not any(isinstance(m, S4ND) for m in model.modules()):
            raise ValueError(f"{key} is for S4ND layers, and {config.model.name} has none")
    bring_to(model, config.stages[stage])
    _set_sampling(model, config, stage)


def bring_to(model: nn.Module, stage: StageConfig, **frames: int | None) -> None:
    """Let a model of any size count as trained at that of a stage, with kernels re-sampled or not as `enter_stage` says.

    Args:
        frames: num_frames, for models of videos.
    """
    resize: Any = getattr(model, "set_input_size", None)
    if resize is None:
        return
    methods = {module: module.resample for module in model.modules() if isinstance(module, S4ND)}
    if methods and stage.resample in (None, "continuous"):
        set_resample(model, "continuous")
    resize(img_size=stage.size, **frames)
    for layer, method in methods.items():
        layer.resample = method


def _set_sampling(model: nn.Module, config: Config, stage: int) -> None:
    set_bandlimit(model, config.stages[stage].bandlimit)
    method = config.stages[stage].resample
    if method is not None:
        set_resample(model, method)


@torch.no_grad()
def check_runs(model: nn.Module, inputs: Tensor, name: str) -> Tensor:
    """The logits of a model at a size that it may refuse, in eval mode.

    Raises:
        ValueError: it does; with its reason.
    """
    try:
        return model.eval()(inputs)
    except BackendError:  # at no size
        raise
    except REFUSALS as error:
        *frames, height, width = inputs.shape[2:]
        clip = f"{frames[0]} frames of " if frames else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name} does not run at {clip}{height} x {width} pixels: {reason}") from error


def channels(model: nn.Module) -> int:
    """Of the model's input: 3 for colour, 1 for grey."""
    return get_model_input_config(model)["input_size"][0]


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel of the input, white being 1: what pretrained_cfg says.

    timm says them of colour images, whatever the channels of the model. Those of a grey model are their luma: the mean of
    luma is the luma of the means, and so is the std where the colours of an image go up and down together.
    """
    cfg: Any = model.pretrained_cfg
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if 0 in std:
        raise ValueError(f"the std of every channel of the input must not be 0, got pretrained_cfg['std']={std}")
    if channels(model) != 1 or len(mean) == 1:
        return mean, std
    mean, std = ((sum(weight * x for weight, x in zip(LUMA, values, strict=True)) / 1000,) for values in (mean, std))
    return mean, std


def to_input(images: Tensor, model: nn.Module, device: torch.device) -> Tensor:
    """uint8 images (B, 3, H, W) or clips (B, 3, T, H, W) to the input on `device`, (B, 1, ...) of their luma for a grey model.

    They are scaled to [0, 1], then by `normalisation`.
    """
    images = images.to(device, non_blocking=True)
    if channels(model) == 1:
        images = to_grey(images, dim=1).unsqueeze(1)
    images = images.float().div_(255)
    pixels = images if images.ndim == 4 else images.transpose(1, 2)  # the channels third from last
    mean, std = (per_channel(values, device) for values in normalisation(model))
    pixels.sub_(mean).div_(std)
    return images


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # it outlives it
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), kept on the device: every copy to it would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
