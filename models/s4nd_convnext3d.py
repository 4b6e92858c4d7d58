"""ConvNeXt for video, with S4ND layers over (time, height, width) or with 3-D convolutions, whole (I3D) or factored (S3D).

timm's ConvNeXt, every two-dimensional part made three-dimensional: a clip is cut into patches of 2 frames by 4 x 4 pixels, and
only space is subsampled further. Nguyen et al. 2022, arXiv:2210.06583, section 4.3; I3D is Carreira and Zisserman 2017,
arXiv:1705.07750, S3D is Xie et al. 2018, arXiv:1712.04851.
Shapes: B batch, C channels, T frames; grids are (time, height, width).
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, to_2tuple
from timm.models import ConvNeXt, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from s4nd import S4ND, no_weight_decay, set_base_size

from .s4nd_convnext import DOWNSAMPLES, STEMS

CONVNEXT_ARGS = inspect.signature(ConvNeXt).parameters
FIXED = ("kernel_sizes", "conv_mlp", "output_stride", "stem_type")  # of timm's arguments
TEMPORAL_PATCH = 2  # frames
STEM_L_MAX = (4, 16, 16)  # support of an S4ND stem's kernels, in frames and pixels of the trained clip


class LayerNorm3d(LayerNorm):
    """LayerNorm over the channels of (B, C, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class FactoredConv3d(nn.Conv2d):
    """A convolution of (B, C, T, H, W) whose kernel is that of a 2-D convolution times a vector over time.

    Args:
        kernel_size, stride, padding: (time, height, width); `time_weight` is shared by all channels and begins as a mean.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=(1, 1, 1), padding=(0, 0, 0), **kwargs):
        (taps, *kernel), (step, *stride), (pad, *padding) = kernel_size, stride, padding
        super().__init__(in_channels, out_channels, tuple(kernel), tuple(stride), tuple(padding), **kwargs)
        self.stride_time, self.padding_time = step, pad
        self.time_weight = nn.Parameter(self.weight.new_full((taps,), 1 / taps))

    def forward(self, x: Tensor) -> Tensor:
        taps, pad = len(self.time_weight), self.padding_time
        # A weighted sum of shifted clips. The two factors commute, and before a stride this one is the cheaper.
        x = F.pad(x, (0, 0, 0, 0, pad, pad))
        stop = x.shape[2] - taps + 1
        x = sum(w * x[:, :, k : k + stop : self.stride_time] for k, w in enumerate(self.time_weight))
        y = super().forward(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


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
        y = self.mlp(self.norm(mixed.movedim(1, -1)))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.movedim(-1, 1))


class VideoStem(nn.Sequential):
    """The first layers, behind a door that refuses what is no clip."""

    def __init__(self, in_chans: int, *layers: nn.Module):
        super().__init__(*layers)
        self.in_chans = in_chans

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            turned = x.ndim == 5 and x.shape[2] == self.in_chans
            hint = "; put the channels before the frames: x.permute(0, 2, 1, 3, 4)" if turned else ""
            raise ValueError(f"x must be (B, {self.in_chans}, frames, height, width), got {tuple(x.shape)}{hint}")
        return super().forward(x)


class ConvNeXt3d(ConvNeXt):
    """(B, in_chans, T, height, width) -> (B, num_classes), for any T >= 2 and any size that leaves the last stage a sample.

    Args:
        conv: nn.Conv3d or FactoredConv3d.
        kwargs: every argument of timm's ConvNeXt but `kernel_sizes`, `conv_mlp`, `output_stride` and `stem_type`.
    """

    def __init__(self, conv: Callable[..., nn.Module] = nn.Conv3d, **kwargs: Any):
        refused = sorted(kwargs.keys() & set(FIXED))
        if refused:
            raise TypeError(f"{type(self).__name__} does not take {', '.join(refused)}")
        super().__init__(**kwargs)
        self.dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.patch_size = kwargs.get("patch_size", 4)
        patch = (TEMPORAL_PATCH, self.patch_size, self.patch_size)
        bias = kwargs.get("conv_bias", True)
        width = self.feature_info[0]["num_chs"]
        self.stem = VideoStem(
            self.in_chans, conv(self.in_chans, width, patch, patch, bias=bias, **self.dd), self._norm(self.stem[-1])
        )
        for stage in self.stages:
            if not isinstance(stage.downsample, nn.Identity):
                norm, flat = stage.downsample
                halved = conv(flat.in_channels, flat.out_channels, (1, 2, 2), (1, 2, 2), bias=bias, **self.dd)
                stage.downsample = nn.Sequential(self._norm(norm), halved)
            for j, block in enumerate(stage.blocks):
                dim = block.conv_dw.in_channels
                mixer = conv(dim, dim, (3, 7, 7), padding=(1, 3, 3), groups=dim, bias=bias, **self.dd)
                stage.blocks[j] = VideoBlock(block, mixer)

    def _norm(self, norm: LayerNorm) -> LayerNorm3d:
        return LayerNorm3d(norm.normalized_shape[0], eps=norm.eps, **self.dd)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, T, height, width) -> (B, num_classes), or (B, C) with pre_logits."""
        y = super().forward_head(x.flatten(2, 3), pre_logits)  # timm's head for images pools two axes
        return y.unflatten(2, x.shape[2:4]) if y.ndim == 4 else y


class S4NDConvNeXt3d(ConvNeXt3d):
    """(B, in_chans, T, height, width) -> (B, num_classes), with S4ND layers over the three axes.

    Args:
        img_size: frame size in training, one number or (height, width); another is the same clip sampled differently.
        num_frames: frames of a clip in training; another number is the same clip sampled differently. 0, or None (which
            `timm.create_model` does not pass on): time extends, a longer clip lasts longer.
        causal: no output depends on a later frame but for the pooling; what `stream` needs (with num_frames=0).
        temporal_length: initial length of the temporal kernels in patches of 2 frames, dt = 2 / length (the paper's Table 9.2
            sweeps 20, 4, 2, 1): the shorter, the nearer the model is to one that sees the frames one by one.
        stem: "patch" or "s4nd", downsample: "conv" or "s4nd", stem_channels: as in S4NDConvNeXt.
        kwargs: as in ConvNeXt3d; the others go to every S4ND layer, one value for all axes or one per axis. Kernels other than
            "s4" begin with their own defaults: the paper's initialisation and `temporal_length` are those of s4.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        num_frames: int | None = 30,
        causal: bool = False,
        temporal_length: float = 1.0,
        stem: str = "patch",
        downsample: str = "conv",
        stem_channels: int = 32,
        **kwargs: Any,
    ):
        if stem not in STEMS or downsample not in DOWNSAMPLES:
            raise ValueError(f"need stem in {STEMS} and downsample in {DOWNSAMPLES}, got {stem!r} and {downsample!r}")
        if temporal_length <= 0:
            raise ValueError(f"temporal_length must be positive, got {temporal_length}")
        timm_args = {name: kwargs.pop(name) for name in list(kwargs) if name in CONVNEXT_ARGS}
        super().__init__(**timm_args)
        self.img_size, self.num_frames, self.causal = to_2tuple(img_size), num_frames or None, causal
        dt = 2 / temporal_length
        # Time: half LegS and half FouT heads, each with its own state matrix, reading the operator's first coordinate.
        paper = dict(
            init=("hippo", "fout", "fout"),
            n_ssm=(None, 1, 1),
            deterministic=(True, False, False),
            dt_min=(dt, 0.1, 0.1),
            dt_max=(dt, 1.0, 1.0),
        )
        layer = paper if kwargs.get("kernel", "s4") == "s4" else {}
        layer |= {"ndim": 3, "bidirectional": (not causal, True, True), **kwargs, **self.dd}
        grids = self._grids()
        if stem == "s4nd":
            width = self.feature_info[0]["num_chs"]
            mixed = layer.get("init", ())[:1] == ("hippo",)
            few = dict(layer, init=("legs", *layer["init"][1:]), n_ssm=1) if mixed else layer
            pool = (TEMPORAL_PATCH, self.patch_size, self.patch_size)
            base = (self.num_frames, *self.img_size)
            self.stem = VideoStem(
                self.in_chans,
                S4ND(
                    self.in_chans, out_channels=stem_channels, base_size=base, pool=pool, **{"l_max": STEM_L_MAX, **few}
                ),
                *self._pointwise_glu(stem_channels, width),
                self.stem[-1],
            )
        for i, stage in enumerate(self.stages):
            if downsample == "s4nd" and i > 0:
                norm, conv = stage.downsample
                stage.downsample = nn.Sequential(
                    norm,
                    S4ND(conv.in_channels, base_size=grids[i - 1], pool=(1, 2, 2), **layer),
                    *self._pointwise_glu(conv.in_channels, conv.out_channels),
                )
            for block in stage.blocks:
                block.conv_dw = S4ND(block.conv_dw.in_channels, base_size=grids[i], **layer)

    def _pointwise_glu(self, in_chs: int, out_chs: int) -> tuple[nn.Module, nn.Module]:
        return nn.Conv3d(in_chs, 2 * out_chs, 1, **self.dd), nn.GLU(dim=1)

    def _grids(self) -> list[tuple[int | None, int, int]]:
        """The grid of each stage in training; None where time extends."""
        least = self.patch_size * 2 ** (len(self.stages) - 1)
        if min(self.img_size) < least:
            raise ValueError(f"img_size must be at least {least} for {len(self.stages)} stages, got {self.img_size}")
        if self.num_frames is not None and self.num_frames < TEMPORAL_PATCH:
            raise ValueError(f"num_frames must be at least {TEMPORAL_PATCH}, got {self.num_frames}")
        time = None if self.num_frames is None else self.num_frames // TEMPORAL_PATCH
        return [(time, *(n // (self.patch_size * 2**i) for n in self.img_size)) for i in range(len(self.stages))]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, num_frames: int | None = None) -> None:
        """From now on the model counts as trained at img_size and num_frames (None: as before); there it computes what it
        did, but for a bandlimit."""
        before = self.img_size, self.num_frames
        self.img_size = before[0] if img_size is None else to_2tuple(img_size)
        self.num_frames = before[1] if num_frames is None else num_frames
        try:
            grids = self._grids()
        except ValueError:
            self.img_size, self.num_frames = before
            raise
        set_base_size(self.stem, (self.num_frames, *self.img_size), rescale=True)
        for i, stage in enumerate(self.stages):
            set_base_size(stage.downsample, grids[i - 1], rescale=True)
            set_base_size(stage.blocks, grids[i], rescale=True)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay, for timm's optimizer factory."""
        return no_weight_decay(self)


def _cfg(url: str = "", **kwargs) -> dict:
    return {
        "url": url,
        "num_classes": 51,
        "input_size": (3, 224, 224),  # of a frame
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.0",
        "classifier": "head.fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "s4nd_convnext3d_micro": _cfg(first_conv=None),  # its stem is an S4ND layer
        "s4nd_convnext3d_tiny": _cfg(),
        "convnext_i3d_micro": _cfg(),
        "convnext_i3d_tiny": _cfg(),
        "convnext_s3d_micro": _cfg(),
        "convnext_s3d_tiny": _cfg(),
    }
)

MICRO = dict(depths=(3, 3, 3, 3), dims=(64, 128, 256, 512))
TINY = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
PAPER = dict(drop_rate=0.2, drop_path_rate=0.2)  # for HMDB-51


def _create(model_cls: type[ConvNeXt3d], variant: str, pretrained: bool = False, **kwargs) -> ConvNeXt3d:
    feature_cfg = dict(out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)), flatten_sequential=True)
    return build_model_with_cfg(model_cls, variant, pretrained, feature_cfg=feature_cfg, **dict(PAPER, **kwargs))


@register_model
def s4nd_convnext3d_micro(pretrained: bool = False, **kwargs) -> S4NDConvNeXt3d:
    """What s4nd_convnext_micro inflates to: S4ND stem and downsampling."""
    args = dict(MICRO, stem="s4nd", downsample="s4nd")
    return _create(S4NDConvNeXt3d, "s4nd_convnext3d_micro", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_convnext3d_tiny(pretrained: bool = False, **kwargs) -> S4NDConvNeXt3d:
    """The paper's S4ND-ConvNeXt-3D for HMDB-51, 31,381,587 parameters."""
    return _create(S4NDConvNeXt3d, "s4nd_convnext3d_tiny", pretrained, **dict(TINY, **kwargs))


@register_model
def convnext_i3d_micro(pretrained: bool = False, **kwargs) -> ConvNeXt3d:
    """What convnext_micro inflates to with whole 3-D kernels."""
    return _create(ConvNeXt3d, "convnext_i3d_micro", pretrained, **dict(MICRO, **kwargs))


@register_model
def convnext_i3d_tiny(pretrained: bool = False, **kwargs) -> ConvNeXt3d:
    """The paper's ConvNeXt-I3D for HMDB-51, 28,513,107 parameters."""
    return _create(ConvNeXt3d, "convnext_i3d_tiny", pretrained, **dict(TINY, **kwargs))


@register_model
def convnext_s3d_micro(pretrained: bool = False, **kwargs) -> ConvNeXt3d:
    """What convnext_micro inflates to with a vector over time for each convolution."""
    args = dict(MICRO, conv=FactoredConv3d)
    return _create(ConvNeXt3d, "convnext_s3d_micro", pretrained, **dict(args, **kwargs))


@register_model
def convnext_s3d_tiny(pretrained: bool = False, **kwargs) -> ConvNeXt3d:
    """The paper's ConvNeXt-S3D for HMDB-51, 27,859,406 parameters."""
    args = dict(TINY, conv=FactoredConv3d)
    return _create(ConvNeXt3d, "convnext_s3d_tiny", pretrained, **dict(args, **kwargs))
