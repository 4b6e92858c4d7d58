"""ConvNeXt for video with S4ND layers over (time, height, width).

The grid is that of convnext3d.py: patches of 2 frames by 4 x 4 pixels, of which only space is subsampled further.
Nguyen et al. 2022, arXiv:2210.06583, section 4.3.
Shapes: B batch, C channels, T frames; grids are (time, height, width).
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model

from s4nd import no_weight_decay, set_resample

from .convnext3d import TEMPORAL_PATCH, ConvNeXt3d, VideoStem, create, video_cfg
from .convnext_family import MICRO, TINY
from .sizes import image_size
from .stages import Grid, check_options, declare_size, put_layers, s4nd_stem, split_options, stage_grids

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
        stem: "patch" or "s4nd", downsample: "conv" or "s4nd", stem_channels, patch_size, stem_type: as in S4NDConvNeXt.
        resample: resampling method at other sizes and numbers of frames, see `s4nd.set_resample`; None for the layers' own.
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
        patch_size: int = 4,
        stem_type: str = "patch",
        resample: str | Sequence[str] | None = None,
        **kwargs: Any,
    ):
        check_options(stem, downsample, stem_type)
        if temporal_length <= 0:
            raise ValueError(f"temporal_length must be positive, got {temporal_length}")
        timm_args, options = split_options(kwargs)
        super().__init__(patch_size=patch_size, stem_type=stem_type, **timm_args)
        self.patch_size, self.stem_type, self.causal = patch_size, stem_type, causal
        size = _clip_size(img_size, num_frames or None)
        self.num_frames, self.img_size = size[0], size[1:]
        dt = 2 / temporal_length
        # Time: half LegS and half FouT heads, each with its own state matrix, reading the operator's first coordinate.
        paper: dict[str, Any] = dict(
            init=("hippo", "fout", "fout"),
            n_ssm=(None, 1, 1),
            deterministic=(True, False, False),
            dt_min=(dt, 0.1, 0.1),
            dt_max=(dt, 1.0, 1.0),
        )
        layer = paper if options.get("kernel", "s4") == "s4" else {}
        layer |= {"bidirectional": (not causal, True, True), **options, **self.dd}
        if stem == "s4nd":
            mixed = layer.get("init", ())[:1] == ("hippo",)
            few = dict(layer, init=("legs", *layer["init"][1:]), n_ssm=1) if mixed else layer
            own = {"l_max": STEM_L_MAX, **few}
            pool = (TEMPORAL_PATCH, patch_size, patch_size)
            self.stem = VideoStem(self.in_chans, *s4nd_stem(self, size, pool, stem_channels, **own))
        put_layers(self.stages, self._grids(size), downsample, **layer)
        if resample is not None:
            set_resample(self, resample)

    def _grids(self, size: tuple[int | None, int, int]) -> list[Grid]:
        """After the stem and after each stage for a clip of size (frames, height, width); frames None: time extends."""
        time = size[0] and size[0] // TEMPORAL_PATCH
        return [(time, *grid) for grid in stage_grids(size[1:], self.patch_size, self.stem_type)]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, num_frames: int | None = None) -> None:
        """From now on the model counts as trained at img_size and num_frames (None: as before); there it computes what it
        did, but for a bandlimit."""
        size = _clip_size(
            self.img_size if img_size is None else img_size, self.num_frames if num_frames is None else num_frames
        )
        declare_size(self, size, self._grids(size), num_frames=size[0])
        self.num_frames, self.img_size = size[0], size[1:]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """As timm's, in the model's dtype; timm takes that of its first parameter, which in an S4ND stem is float32."""
        super().reset_classifier(num_classes, global_pool, reset_other)
        self.head.fc.to(self.stem[-1].weight.dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay, for timm's optimizer factory."""
        return no_weight_decay(self)


def _clip_size(img_size: int | tuple[int, int], num_frames: int | None) -> tuple[int | None, int, int]:
    """(frames, height, width); frames None where time extends."""
    frames = num_frames if num_frames is None else operator.index(num_frames)
    if frames is not None and frames < TEMPORAL_PATCH:
        raise ValueError(f"num_frames must be at least {TEMPORAL_PATCH}, got {frames}")
    return (frames, *image_size(img_size))


default_cfgs = generate_default_cfgs(
    {
        "s4nd_convnext3d_micro": video_cfg(first_conv=()),  # its stem is an S4ND layer
        "s4nd_convnext3d_tiny": video_cfg(),
    }
)


@register_model
def s4nd_convnext3d_micro(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt3d:
    """What s4nd_convnext_micro inflates to: S4ND stem and downsampling, the same resampling method."""
    args = dict(MICRO, stem="s4nd", downsample="s4nd", resample="hold+dilate")
    return create(S4NDConvNeXt3d, "s4nd_convnext3d_micro", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_convnext3d_tiny(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt3d:
    """The paper's S4ND-ConvNeXt-3D for HMDB-51, 31,381,587 parameters."""
    return create(S4NDConvNeXt3d, "s4nd_convnext3d_tiny", pretrained, **dict(TINY, **kwargs))
