"""What the S4ND-ConvNeXts over images and over clips share: the grids of their stages, and the layers on them and in the stem.

Shapes: C channels; grids are (height, width) or (time, height, width).
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import ConvNeXt
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from s4nd import S4ND, set_base_size

CONVNEXT_ARGS = inspect.signature(ConvNeXt).parameters
STEMS, DOWNSAMPLES = ("patch", "s4nd"), ("conv", "s4nd")
Grid = tuple[int | None, ...]


def check_options(stem: str, downsample: str, stem_type: str) -> None:
    """Refuse what the S4ND-ConvNeXts do not know."""
    if stem not in STEMS or downsample not in DOWNSAMPLES:
        raise ValueError(f"need stem in {STEMS} and downsample in {DOWNSAMPLES}, got {stem!r} and {downsample!r}")
    if stem == "s4nd" and stem_type != "patch":
        raise ValueError(f"stem='s4nd' replaces the patch stem, got stem_type={stem_type!r}")


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of timm's ConvNeXt, and the others, which are of every S4ND layer."""
    timms = {name: value for name, value in options.items() if name in CONVNEXT_ARGS}
    return timms, {name: value for name, value in options.items() if name not in timms}


def stage_grids(img_size: tuple[int, int], patch_size: int = 4, stem_type: str = "patch") -> list[tuple[int, int]]:
    """The grids after the stem and after each stage of timm's ConvNeXt for an image of img_size, without `output_stride`.

    A ConvNeXt without blocks is asked, on the meta device: how stems round an odd size, and where a large patch leaves a stage
    nothing to subsample, is timm's to say.
    """
    with torch.device("meta"):
        flat = ConvNeXt(depths=(0,) * 4, dims=(8,) * 4, patch_size=patch_size, stem_type=stem_type)

    def grids(size: tuple[int, int]) -> list[tuple[int, int]] | None:
        try:
            x = flat.stem(torch.empty(1, 3, *size, device="meta"))
            found = [tuple(x.shape[2:])]
            for stage in flat.stages:
                x = stage(x)
                found.append(tuple(x.shape[2:]))
        except RuntimeError:  # a convolution's, whose kernel is larger than its input
            return None
        return None if any(0 in grid for grid in found) else found  # torch 2.7 refuses nothing on the meta device

    found = grids(img_size)
    if found is None:
        least = next(n for n in count(1) if grids((n, n)))
        raise ValueError(f"img_size must be at least {least} for {len(flat.stages)} stages, got {img_size}")
    return found


class ChannelsGLU(nn.Module):
    """A gated linear unit over the channels.

    An exported program gets its result channels-last, as the blocks after it have theirs: a sum of two memory layouts would
    bind the program to sizes like the example's.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(x, 1)
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out what it does not know in this form alone
            if torch.compiler.is_exporting() and y.ndim == 4:
                return y.clone(memory_format=torch.channels_last)
        return y


@torch.fx.wrap  # a leaf of fx graphs, which have no branches
def _half_as(weight: Tensor, x: Tensor) -> Tensor:
    """x, rounded if it is float32 and the weight in half precision; other pairs are refused, as by other convolutions."""
    half = weight.dtype == torch.float16 or weight.dtype == torch.bfloat16
    return x.to(weight.dtype) if half and x.dtype == torch.float32 else x


class _InItsDtype:
    """A convolution in half precision that takes float32 too.

    The kernels of an S4ND stem are the model's first parameters, and float32 in every model: what asks these for the dtype, as
    transformers does, gives a model in half precision float32 images.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        return self._conv_forward(_half_as(self.weight, x), self.weight, self.bias)


class StemConv2d(_InItsDtype, nn.Conv2d):
    """After the S4ND layer of a stem over images."""


class StemConv3d(_InItsDtype, nn.Conv3d):
    """After the S4ND layer of a stem over clips."""


CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
STEM_CONV: dict[int, type[nn.Module]] = {2: StemConv2d, 3: StemConv3d}


def _pointwise_glu(conv: type[nn.Module], in_chs: int, out_chs: int, **dd: Any) -> tuple[nn.Module, nn.Module]:
    """A linear map of the channels and a gated linear unit, (B, in_chs, ...) -> (B, out_chs, ...)."""
    return conv(in_chs, 2 * out_chs, 1, **dd), ChannelsGLU()


def s4nd_stem(
    model: ConvNeXt, size: Grid, pool: int | Sequence[int], channels: int, /, **layer: Any
) -> tuple[nn.Module, ...]:
    """The layers in place of timm's stem, of which the norm stays.

    Args:
        size: of the input in training.
        pool: window of the average pooling, which is folded into the S4ND layer.
        channels: outputs of the S4ND layer.
        layer: its other arguments.
    """
    ndim, width = len(size), int(model.feature_info[0]["num_chs"])  # type: ignore[call-overload]  # timm's dicts
    return (
        S4ND(model.in_chans, ndim, out_channels=channels, base_size=size, pool=pool, **layer),
        *_pointwise_glu(STEM_CONV[ndim], channels, width, **_factory(layer)),
        model.stem[-1],
    )


def put_layers(stages: Iterable[Any], grids: Sequence[Grid], downsample: str, **layer: Any) -> None:
    """S4ND in place of the stages' mixing layers, and with downsample="s4nd" of their strided convolutions.

    Args:
        grids: after the stem and after each stage.
        layer: arguments of every S4ND layer.
    """
    ndim, dd = len(grids[0]), _factory(layer)
    for stage, (before, grid) in zip(stages, pairwise(grids), strict=True):
        if downsample == "s4nd" and not isinstance(stage.downsample, nn.Identity):
            norm, conv = stage.downsample[0], stage.downsample[-1]
            stage.downsample = nn.Sequential(
                norm,
                S4ND(conv.in_channels, ndim, base_size=before, pool=conv.stride, **layer),
                *_pointwise_glu(CONV[ndim], conv.in_channels, conv.out_channels, **dd),
            )
        for block in stage.blocks:
            block.conv_dw = S4ND(block.conv_dw.in_channels, ndim, base_size=grid, **layer)


def _factory(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: layer[name] for name in ("device", "dtype")}


def declare_size(
    model: ConvNeXt, size: tuple[int, int] | tuple[int | None, int, int], grids: Sequence[Grid], **model_args: Any
) -> None:
    """From now on the model counts as trained at `size`, where its stages meet `grids`; model_args say so to timm."""
    set_base_size(model.stem, size, rescale=True)
    stages: Iterable[Any] = model.stages
    for stage, (before, grid) in zip(stages, pairwise(grids), strict=False):  # stages may have been pruned
        set_base_size(stage.downsample, before, rescale=True)
        set_base_size(stage.blocks, grid, rescale=True)
    update_model_input_size(model, size[-2:], **model_args)
