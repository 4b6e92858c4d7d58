"""Weights of an image model as the beginning of a video model.

    report = s4nd.models.inflate(timm.create_model("convnext_tiny", pretrained=True), timm.create_model("convnext_i3d_tiny"))

A convolution is repeated over time and divided by its T taps (I3D, Carreira and Zisserman 2017, arXiv:1705.07750); an S4ND
layer keeps its kernels over space and has one over time from its initialisation (Nguyen et al. 2022, arXiv:2210.06583, 4.3).

On a clip that repeats an image, frames whose view of time stays inside the clip then have the image's features: exactly with
convolutions, and with S4ND layers as far as their kernels over time have decayed at its ends, if these have unit gain:

    y = T (S u) + D u = (sum of T's taps) S u + D u

Shapes: B batch, C kernels per head, H heads, R rank, N states, T taps.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor, nn

from s4nd import S4ND, set_base_size
from s4nd.nn import Sampling

from .convnext3d import ConvNeXt3d
from .names import counted, listed

MIXER = "conv_dw"  # where a block may hold a convolution or an S4ND layer
CLASSIFIER = "head.fc."
SMALLEST_GAIN = 0.1  # below it a kernel over time would be blown up, not normalised


class Inflation(NamedTuple):
    """What became of every entry: names of the video model's state dict, but for `unused`, names of the image model's.

    Attributes:
        copied: as in the image model.
        inflated: repeated over time and divided by T; a factored convolution's `time_weight` is 1 / T.
        scaled: read-outs of the kernels over time, initial but for their gain.
        initial: as the video model was.
        unused: entries of the image model without a place in the video model.
    """

    copied: list[str]
    inflated: list[str]
    scaled: list[str]
    initial: list[str]
    unused: list[str]

    def __str__(self) -> str:
        kinds = self._asdict().items()
        return "; ".join(f"{len(names)} {kind}{': ' if names else ''}{listed(names)}" for kind, names in kinds)


@torch.no_grad()
def inflate(source: nn.Module | Mapping[str, Tensor], model: nn.Module, *, unit_gain: bool = True) -> Inflation:
    """Fill a video model from an image model of the same widths and depths, in place.

    What stays as it was: kernels over time, a classifier of another number of classes, and mixing layers of another kind (a
    convolution has no place in an S4ND layer, nor the other way round). All else must be there and fit.

    Args:
        source: an S4ND-ConvNeXt, timm's ConvNeXt, or the state dict of one. Its S4ND layers are re-sampled to the video model's
            frame size; those of a state dict that does not say what it was trained on count as trained at it.
        model: of convnext3d.py or s4nd_convnext3d.py.
        unit_gain: multiply the read-out C of the S4ND kernels over time so that their taps sum to 1 per head, over both
            directions of a two-sided axis. False is the reference implementation's rule: with the default initialisation the
            taps sum to 1 per direction, to 2 on a two-sided axis.

    Raises:
        ValueError: a source that does not fit, or (with unit_gain) a kernel whose taps sum to less than 0.1; the model is as
            it was.
    """
    if not isinstance(model, ConvNeXt3d):
        raise ValueError(f"inflate fills a ConvNeXt over (time, height, width), got {type(model).__name__}")
    flat = source.state_dict() if isinstance(source, nn.Module) else source
    for name, value in flat.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"inflate needs a state dict of tensors, got {name} of type {type(value).__name__}")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, S4ND)}
    if isinstance(source, nn.Module):
        _check_kernels(source, layers)
    samplings = {name: flat[key] for name in layers if (key := f"{name}._extra_state") in flat}
    flat = {key: value for key, value in flat.items() if not key.endswith("_extra_state")}
    twins = {name: _resampled(name, layers[name], flat, Sampling.from_tensor(x)) for name, x in samplings.items()}
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("_extra_state")}
    report, weights = _plan(flat, own, layers, type(model).__name__)
    filled = {name: layer for name, layer in layers.items() if f"{name}.kernels.1.C" in weights}
    gains = {name: _gain(layer) for name, layer in filled.items()} if unit_gain else {}
    if low := [name for name, gain in gains.items() if gain.abs().min() < SMALLEST_GAIN]:
        raise ValueError(
            f"unit_gain needs kernels over time whose taps sum to at least {SMALLEST_GAIN}, as with deterministic=True; "
            f"less in {len(low)} layers: {listed(low)}: build them so, or inflate with unit_gain=False"
        )
    for name, value in weights.items():
        own[name].copy_(value)
    for name, layer in filled.items():
        if name in gains:
            by_direction = layer.kernels[0].C.unflatten(0, (-1, len(gains[name])))
            by_direction /= gains[name].reshape(*gains[name].shape, *([1] * (by_direction.ndim - 3)))
        if name in twins:
            layer.sampling = twins[name].sampling
    scaled = [f"{name}.kernels.0.C" for name in gains]
    return report._replace(scaled=scaled, initial=[name for name in report.initial if name not in scaled])


def _plan(
    flat: Mapping[str, Tensor], own: Mapping[str, Tensor], layers: Mapping[str, S4ND], model: str
) -> tuple[Inflation, dict[str, Tensor]]:
    """What becomes of every entry, and the new values."""
    report, weights = Inflation([], [], [], [], []), {}
    missing, misshaped, used = [], [], set()
    replaced = _replaced_mixers(flat, own)
    for name, value in own.items():
        over_time = re.fullmatch(r"(.+)\.kernels\.0\..+", name)
        if name.startswith(replaced) or (over_time and over_time[1] in layers):
            report.initial.append(name)
            continue
        if name.endswith(".time_weight"):
            report.inflated.append(name)
            weights[name] = torch.full_like(value, 1 / len(value))
            continue
        theirs = _flat_name(name, layers)
        if theirs not in flat:
            missing.append(theirs)
            continue
        old = flat[theirs]
        if name.startswith(CLASSIFIER) and old.shape[1:] == value.shape[1:] and len(old) != len(value):
            report.initial.append(name)
            continue
        used.add(theirs)
        if old.shape == value.shape:
            report.copied.append(name)
            weights[name] = old
        elif value.ndim == 5 and old.shape == value.shape[:2] + value.shape[3:]:
            report.inflated.append(name)
            weights[name] = (old / value.shape[2])[:, :, None].expand_as(value)
        else:
            misshaped.append(f"{theirs} {tuple(old.shape)} for {tuple(value.shape)}")
    report.unused.extend(name for name in flat if name not in used)
    unknown = [name for name in report.unused if not name.startswith((*replaced, CLASSIFIER))]
    if problems := counted({"missing": missing, "unknown": unknown, "of another shape": misshaped}):
        raise ValueError(f"the image model is not the flat counterpart of this {model}: {problems}")
    return report, weights


def _replaced_mixers(flat: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of the mixing layers that are a convolution in one of the models and S4ND in the other."""

    def is_s4nd(names: Iterable[str]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for name in names:
            prefix, dot, rest = name.partition(f".{MIXER}.")
            if dot:
                found[prefix + dot] = found.get(prefix + dot, False) or rest.startswith("kernels.")
        return found

    theirs, ours = is_s4nd(flat), is_s4nd(own)
    return tuple(prefix for prefix in ours if ours[prefix] != theirs.get(prefix, ours[prefix]))


def _flat_name(name: str, layers: Mapping[str, S4ND]) -> str:
    """Axes (time, height, width) -> (height, width)."""
    kernel = re.fullmatch(r"(.+)\.kernels\.(\d+)(\..+)", name)
    if kernel and kernel[1] in layers:
        return f"{kernel[1]}.kernels.{int(kernel[2]) - 1}{kernel[3]}"
    return name


def _check_kernels(source: nn.Module, layers: Mapping[str, S4ND]) -> None:
    """Kernels over space must mean in the video model what they mean in the image model."""
    for name, flat in source.named_modules():
        if isinstance(flat, S4ND) and name in layers:
            theirs, ours = (list(map(_options, layer.kernels[-2:])) for layer in (flat, layers[name]))
            if theirs != ours:
                raise ValueError(f"inflate needs S4ND layers of one kernel, got {ours} for {theirs} in {name}")


def _resampled(name: str, layer: S4ND, flat: dict[str, Tensor], sampling: Sampling) -> S4ND:
    """A copy of the video model's layer with the image model's kernels over space, re-sampled to the video's frame size; they
    replace those in `flat`."""
    if sampling.align != layer.align or sampling.ndim != layer.ndim - 1:
        theirs, ours = (f"align={x.align!r} and {x.ndim} axes" for x in (sampling, layer))
        raise ValueError(
            f"inflate needs S4ND layers of one alignment and one more axis, got {ours} for {theirs} in {name}"
        )
    twin = copy.deepcopy(layer)
    own = {
        key: value
        for key, value in twin.named_parameters(prefix=name)
        if ".kernels." in key and ".kernels.0." not in key
    }
    keys = {key: _flat_name(key, {name: layer}) for key in own}
    if any(keys[key] not in flat or flat[keys[key]].shape != value.shape for key, value in own.items()):
        return twin  # what is missing or of another shape is reported with all the rest
    for key, value in own.items():
        value.copy_(flat[keys[key]])
    twin.base_size = (layer.base_size[0], *sampling.base_size)
    twin.l_max = (layer.l_max[0], *sampling.l_max)
    twin.resample = (layer.resample[0], *sampling.resample)
    set_base_size(twin, layer.base_size, rescale=True)
    flat.update({keys[key]: value.detach() for key, value in own.items()})
    return twin


def _options(kernel: nn.Module) -> dict[str, str | None]:
    """What is not among the weights but changes what they mean."""
    return {name: getattr(kernel, name, None) for name in ("name", "disc", "A_constraint")}


def _gain(layer: S4ND) -> Tensor:
    """(R C, H): sums of all taps of the kernels over time, both directions of a two-sided axis together."""
    kernel, frames, window = layer.kernels[0], layer.base_size[0], layer.l_max[0]
    options = {"bandlimit": layer.bandlimit, "align": layer.align}
    if window is not None or kernel.needs_length:
        gain = kernel(window or frames, **options).sum(-1)
    else:  # the output for a constant input, whose state stays: x = x + G x + B
        step = kernel.recurrence(frames, **options)
        eye = torch.eye(step.N, dtype=step.B.dtype, device=step.B.device).expand(1, len(step.B), -1, -1)
        G = step.drift(eye)[0].mT  # drift takes a state per row
        gain = step.D - torch.einsum("chn,hn->ch", step.C, torch.linalg.solve(G, step.B))
    directions = 2 if layer.bidirectional[0] else 1
    return reduce(gain, "(direction rc) h -> rc h", "sum", direction=directions).to(kernel.C.dtype)
