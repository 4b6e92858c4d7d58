"""ConvNeXt for video, with 3-D convolutions, whole (I3D) or factored (S3D).

timm's ConvNeXt, every two-dimensional part made three-dimensional: a clip is cut into patches of 2 frames by 4 x 4 pixels, and
only space is subsampled further. I3D is Carreira and Zisserman 2017, arXiv:1705.07750, S3D is Xie et al. 2018,
arXiv:1712.04851; both as in Nguyen et al. 2022, arXiv:2210.06583, section 4.3.
Shapes: B batch, C channels, T frames; grids are (time, height, width).
"""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Conv2dSame, LayerNorm, LayerNorm2d
from timm.models import ConvNeXt, adapt_input_conv, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from .convnext_family import MICRO, TINY, convnext_cfg, create_convnext

TEMPORAL_PATCH = 2  # frames
torch.fx.wrap("rearrange")  # a leaf of fx graphs: it asks for the type of its argument


class LayerNorm3d(LayerNorm):
    """LayerNorm over the channels of (B, C, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class FactoredConv3d(nn.Conv2d):
    """A convolution of (B, C, T, H, W) whose kernel is that of a 2-D convolution times a vector over time.

    Args:
        kernel_size, stride, padding, dilation: (time, height, width), time without dilation. `time_weight` is shared by
            all channels and begins as a mean.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (0, 0, 0),
        dilation: tuple[int, int, int] = (1, 1, 1),
        **kwargs: Any,
    ):
        super().__init__(in_channels, out_channels, kernel_size[1:], stride[1:], padding[1:], dilation[1:], **kwargs)
        self.taps, self.stride_time, self.padding_time = kernel_size[0], stride[0], padding[0]
        self.time_weight = nn.Parameter(self.weight.new_full((self.taps,), 1 / self.taps))

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2] + 2 * self.padding_time - self.taps + 1
        x = F.pad(x, (0, 0, 0, 0, self.padding_time, self.padding_time))
        # A weighted sum of shifted clips. The two factors commute, and before a stride this one is the cheaper.
        shifted = (x[:, :, k : k + frames : self.stride_time] for k in range(self.taps))
        x = reduce(torch.add, (self.time_weight[k] * clip for k, clip in enumerate(shifted)))
        x = rearrange(x, "b c t h w -> b t c h w")
        if torch.compiler.is_exporting():  # a view holds for the present memory layout, which exporters change later
            x = x.clone(memory_format=torch.contiguous_format)
        y = super().forward(rearrange(x, "b t c h w -> (b t) c h w"))
        return rearrange(y, "(b t) c h w -> b c t h w", t=x.shape[1])


class VideoBlock(nn.Module):
    """timm's ConvNeXt block around any mixing layer of (B, C, T, H, W).

    Args:
        block: gives all its other parts.
        mixer: in place of its convolution.
    """

    def __init__(self, block: ConvNeXtBlock, mixer: nn.Module):
        super().__init__()
        self.conv_dw, self.norm, self.mlp = mixer, block.norm, block.mlp
        self.gamma, self.drop_path = block.gamma, block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, self.conv_dw(x))

    def residual(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, given what its mixing layer makes of x."""
        y = self.norm(mixed.movedim(1, -1))
        y = self.mlp(y.flatten(1, 2)).view_as(y)  # timm's response normalisation (use_grn) is over axes 1 and 2
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.movedim(-1, 1))


class VideoStem(nn.Sequential):
    """The first layers, behind a door that refuses what is no clip."""

    def __init__(self, in_chans: int, *layers: nn.Module):
        super().__init__(*layers)
        self.in_chans = in_chans

    def forward(self, x: Tensor) -> Tensor:
        x = check_clip(x, self.in_chans)
        for layer in self:
            x = layer(x)
        return x


@torch.fx.wrap  # a leaf of fx graphs, which have no branches
def check_clip(x: Tensor, in_chans: int) -> Tensor:
    """x, if it is (B, in_chans, frames, height, width)."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return x
    if x.ndim != 5 or x.shape[1] != in_chans:
        turned = x.ndim == 5 and x.shape[2] == in_chans
        hint = "; put the channels before the frames: x.permute(0, 2, 1, 3, 4)" if turned else ""
        raise ValueError(f"x must be (B, {in_chans}, frames, height, width), got {tuple(x.shape)}{hint}")
    return x


Model = TypeVar("Model", bound="ConvNeXt3d")


class ConvNeXt3d(ConvNeXt):
    """(B, in_chans, T, height, width) -> (B, num_classes), for any T >= 2 and any size that leaves the last stage a sample.

    Args:
        conv: nn.Conv3d or FactoredConv3d.
        kwargs: every argument of timm's ConvNeXt but `kernel_sizes` and `conv_mlp`; `norm_layer` is timm's default.
    """

    def __init__(self, conv: Callable[..., nn.Module] = nn.Conv3d, **kwargs: Any):
        if refused := sorted(kwargs.keys() & {"kernel_sizes", "conv_mlp"}):
            raise TypeError(f"{type(self).__name__} does not take {', '.join(refused)}")
        super().__init__(**kwargs)
        dd: Any = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.dd = dd  # TorchScript takes no annotation of an attribute here
        stem: Any = self.stem
        first, *others, norm = stem
        layers = [self._lifted(conv, first, TEMPORAL_PATCH, TEMPORAL_PATCH)]
        layers += [self._lifted(conv, layer) if isinstance(layer, nn.Conv2d) else layer for layer in others]
        self.stem = VideoStem(self.in_chans, *layers, self._norm(norm))
        # What timm adapts to other input channels, which must be two-dimensional; the others are `_adapt_input`'s.
        self._traits = {"first_conv": "stem.0" if isinstance(layers[0], nn.Conv2d) else ()}
        if not isinstance(self.norm_pre, nn.Identity):
            self.norm_pre = self._norm(self.norm_pre)
        stages: Iterable[Any] = self.stages
        for stage in stages:
            if not isinstance(stage.downsample, nn.Identity):
                stage.downsample = self._downsample(conv, *stage.downsample)
            for j, block in enumerate(stage.blocks):
                stage.blocks[j] = VideoBlock(block, self._lifted(conv, block.conv_dw, 3))

    def _downsample(self, conv: Callable[..., nn.Module], norm: nn.Module, flat: nn.Conv2d) -> nn.Sequential:
        layers = nn.Sequential()
        layers.add_module("0", self._norm(norm))
        if isinstance(flat, Conv2dSame):  # 2 x 2 taps without a stride, for which timm pads in the forward
            layers.add_module("pad", nn.ConstantPad3d((0, 1, 0, 1, 0, 0), 0.0))
        layers.add_module("1", self._lifted(conv, flat))
        return layers

    def _lifted(self, conv: Callable[..., nn.Module], flat: nn.Conv2d, taps: int = 1, step: int = 1) -> nn.Module:
        """What timm built for images, with `taps` over time every `step` frames; freshly drawn."""
        pad = taps // 2 if step == 1 else 0
        return conv(
            flat.in_channels,
            flat.out_channels,
            (taps, *flat.kernel_size),
            (step, *flat.stride),
            (pad, *flat.padding),
            (1, *flat.dilation),
            groups=flat.groups,
            bias=flat.bias is not None,
            **self.dd,
        )

    def _norm(self, norm: nn.Module) -> LayerNorm3d:
        if not isinstance(norm, LayerNorm2d):
            raise ValueError(f"{type(self).__name__} needs norm_layer='layernorm', got timm's {type(norm).__name__}")
        return LayerNorm3d(norm.normalized_shape[0], eps=norm.eps, **self.dd)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, T, height, width) -> (B, num_classes), or (B, C) with pre_logits."""
        y = self.head(x.flatten(2, 3), pre_logits=pre_logits)  # timm's head for images pools two axes
        return y if self.head.global_pool.pool_type else y.unflatten(2, x.shape[2:4])


def video_cfg(**changes: Any) -> dict[str, Any]:
    """What timm is to know of a model of videos, as built for HMDB-51."""
    return convnext_cfg(**{"num_classes": 51, **changes})


default_cfgs = generate_default_cfgs(
    {
        "convnext_i3d_micro": video_cfg(),
        "convnext_i3d_tiny": video_cfg(),
        "convnext_s3d_micro": video_cfg(),
        "convnext_s3d_tiny": video_cfg(),
    }
)

PAPER = dict(drop_rate=0.2, drop_path_rate=0.2)  # for HMDB-51


def _adapt_input(state: dict[str, Tensor], model: ConvNeXt3d) -> dict[str, Tensor]:
    """A checkpoint's first 3-D convolution for the model's input channels, as timm adapts 2-D ones."""
    weight = state.get("stem.0.weight")
    if weight is None or weight.ndim != 5 or weight.shape[1] == model.in_chans:
        return state
    flat = adapt_input_conv(model.in_chans, weight.flatten(2, 3), base_chans=weight.shape[1])
    return state | {"stem.0.weight": flat.unflatten(2, weight.shape[2:4])}


def create(model_cls: type[Model], variant: str, pretrained: bool = False, **kwargs: Any) -> Model:
    """A registered video model by timm's builder, with the paper's regularisation for HMDB-51."""
    return create_convnext(model_cls, variant, pretrained, pretrained_filter_fn=_adapt_input, **(PAPER | kwargs))


@register_model
def convnext_i3d_micro(pretrained: bool = False, **kwargs: Any) -> ConvNeXt3d:
    """What convnext_micro inflates to with whole 3-D kernels."""
    return create(ConvNeXt3d, "convnext_i3d_micro", pretrained, **dict(MICRO, **kwargs))


@register_model
def convnext_i3d_tiny(pretrained: bool = False, **kwargs: Any) -> ConvNeXt3d:
    """The paper's ConvNeXt-I3D for HMDB-51, 28,513,107 parameters."""
    return create(ConvNeXt3d, "convnext_i3d_tiny", pretrained, **dict(TINY, **kwargs))


@register_model
def convnext_s3d_micro(pretrained: bool = False, **kwargs: Any) -> ConvNeXt3d:
    """What convnext_micro inflates to with a vector over time for each convolution."""
    args = dict(MICRO, conv=FactoredConv3d)
    return create(ConvNeXt3d, "convnext_s3d_micro", pretrained, **dict(args, **kwargs))


@register_model
def convnext_s3d_tiny(pretrained: bool = False, **kwargs: Any) -> ConvNeXt3d:
    """The paper's ConvNeXt-S3D for HMDB-51, 27,859,406 parameters."""
    args = dict(TINY, conv=FactoredConv3d)
    return create(ConvNeXt3d, "convnext_s3d_tiny", pretrained, **dict(args, **kwargs))
