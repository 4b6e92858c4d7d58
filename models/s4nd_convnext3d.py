"""ConvNeXt for video with S4ND layers over (time, height, width).

The grid is that of convnext3d.py: patches of 2 frames by 4 x 4 pixels, of which only space is subsampled further.
Nguyen et al. 2022, arXiv:2210.06583, section 4.3.
Shapes: B batch, C channels, T frames; grids are (time, height, width).
"""

import inspect
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import ConvNeXt, generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from torch import nn

from s4nd import S4ND, no_weight_decay, set_base_size

from .convnext3d import MICRO, TEMPORAL_PATCH, TINY, ConvNeXt3d, VideoStem, create, video_cfg
from .s4nd_convnext import DOWNSAMPLES, STEMS

CONVNEXT_ARGS = inspect.signature(ConvNeXt).parameters
STEM_L_MAX = (4, 16, 16)  # support of an S4ND stem's kernels, in frames and pixels of the trained clip


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


default_cfgs = generate_default_cfgs(
    {
        "s4nd_convnext3d_micro": video_cfg(first_conv=None),  # its stem is an S4ND layer
        "s4nd_convnext3d_tiny": video_cfg(),
    }
)


@register_model
def s4nd_convnext3d_micro(pretrained: bool = False, **kwargs) -> S4NDConvNeXt3d:
    """What s4nd_convnext_micro inflates to: S4ND stem and downsampling."""
    args = dict(MICRO, stem="s4nd", downsample="s4nd")
    return create(S4NDConvNeXt3d, "s4nd_convnext3d_micro", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_convnext3d_tiny(pretrained: bool = False, **kwargs) -> S4NDConvNeXt3d:
    """The paper's S4ND-ConvNeXt-3D for HMDB-51, 31,381,587 parameters."""
    return create(S4NDConvNeXt3d, "s4nd_convnext3d_tiny", pretrained, **dict(TINY, **kwargs))
