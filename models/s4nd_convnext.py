"""S4ND-ConvNeXt: timm's ConvNeXt with S4ND layers in place of its depthwise convolutions.

The stem and the downsampling may be S4ND layers too: a layer over the whole grid, average pooling (folded into the layer), a
pointwise linear map and a gated linear unit. Nguyen et al. 2022, arXiv:2210.06583, section 4; ConvNeXt is Liu et al. 2022,
arXiv:2201.03545. Shapes: B batch, C channels; grids are (height, width).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import ConvNeXt, generate_default_cfgs, register_model
from torch import nn

from s4nd import no_weight_decay, set_resample

from .convnext_family import MICRO, TINY, convnext_cfg, create_convnext
from .sizes import image_size
from .stages import check_options, declare_size, put_layers, s4nd_stem, split_options, stage_grids

STEM_L_MAX = 16  # support of the stem's kernels along each axis, in pixels of the trained size


class S4NDConvNeXt(ConvNeXt):
    """(B, in_chans, height, width) -> (B, num_classes), for any size that leaves the last stage a sample.

    Args:
        img_size: image size in training, one number or (height, width); another size is the same image sampled differently.
        stem: "patch", timm's strided convolution, or "s4nd".
        downsample: "conv", timm's strided convolutions, or "s4nd".
        stem_channels: outputs of the S4ND stem's layer.
        patch_size, stem_type: as in timm's ConvNeXt.
        resample: resampling method at other sizes, see `s4nd.set_resample`; None for the layers' own.
        kwargs: every argument of timm's ConvNeXt but `kernel_sizes`; the others go to every S4ND layer. With output_stride 8
            or 16 the last stages count as trained on the grid that they would have without it, and see a finer one of the
            same image: there is nothing to dilate.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        stem: str = "patch",
        downsample: str = "conv",
        stem_channels: int = 32,
        patch_size: int = 4,
        stem_type: str = "patch",
        resample: str | Sequence[str] | None = None,
        **kwargs: Any,
    ):
        timm_args, layer = split_options(kwargs)
        if "kernel_sizes" in timm_args:
            raise TypeError("S4ND kernels span the whole grid: there is no kernel_sizes; l_max limits their support")
        check_options(stem, downsample, stem_type)
        super().__init__(patch_size=patch_size, stem_type=stem_type, **timm_args)
        self.img_size, self.patch_size, self.stem_type = image_size(img_size), patch_size, stem_type
        self._traits = {"first_conv": () if stem == "s4nd" else "stem.0"}  # what timm adapts to other input channels
        layer |= {"device": timm_args.get("device"), "dtype": timm_args.get("dtype")}
        if stem == "s4nd":
            own = {"l_max": STEM_L_MAX, **layer}
            self.stem = nn.Sequential(*s4nd_stem(self, self.img_size, patch_size, stem_channels, **own))
        put_layers(self.stages, self._grids(self.img_size), downsample, **layer)
        if resample is not None:
            set_resample(self, resample)

    def _grids(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        return stage_grids(img_size, self.patch_size, self.stem_type)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """From now on the model counts as trained at img_size; there it computes what it did, but for a bandlimit."""
        size = image_size(img_size)
        declare_size(self, size, self._grids(size))
        self.img_size = size

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """As timm's, in the model's dtype; timm takes that of its first parameter, which in an S4ND stem is float32."""
        super().reset_classifier(num_classes, global_pool, reset_other)
        self.head.fc.to(self.stem[-1].weight.dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay, for timm's optimizer factory."""
        return no_weight_decay(self)


default_cfgs = generate_default_cfgs(
    {
        "s4nd_convnext_micro": convnext_cfg(first_conv=()),  # its stem is an S4ND layer
        "s4nd_convnext_tiny": convnext_cfg(),
        "s4nd_convnext_small": convnext_cfg(),
        "s4nd_convnext_base": convnext_cfg(),
        "convnext_micro": convnext_cfg(),
    }
)


# S4-FouT, dt between 0.1 and 1 sample, layer scale 1e-6, stochastic depth up to 0.1: the paper's for ImageNet and Celeb-A.
PAPER = dict(kernel="s4", init="fout", dt_min=0.1, dt_max=1.0, drop_path_rate=0.1)


@register_model
def s4nd_convnext_micro(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """3, 3, 3, 3 blocks of 64 to 512 channels, S4ND stem and downsampling: the paper's S4ND-ConvNeXt-M for Celeb-A, 9,644,206
    parameters with 40 classes (3 less than the reference's, whose dense stem has a D that it does not use)."""
    args = dict(PAPER, **MICRO, stem="s4nd", downsample="s4nd")
    args |= dict(resample="hold+dilate")  # what keeps Imagenette's accuracy (README); every layer on a grid is S4ND's
    return create_convnext(S4NDConvNeXt, "s4nd_convnext_micro", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """3, 3, 9, 3 blocks of 96 to 768 channels: the paper's S4ND-ConvNeXt-T for ImageNet, 29,980,456 parameters."""
    args = dict(PAPER, **TINY)
    return create_convnext(S4NDConvNeXt, "s4nd_convnext_tiny", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_convnext_small(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """3, 3, 27, 3 blocks of 96 to 768 channels."""
    args = dict(PAPER, depths=(3, 3, 27, 3), dims=(96, 192, 384, 768))
    return create_convnext(S4NDConvNeXt, "s4nd_convnext_small", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_convnext_base(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """3, 3, 27, 3 blocks of 128 to 1024 channels."""
    args = dict(PAPER, depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024))
    return create_convnext(S4NDConvNeXt, "s4nd_convnext_base", pretrained, **dict(args, **kwargs))


@register_model
def convnext_micro(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """3, 3, 3, 3 blocks of 64 to 512 channels: the paper's ConvNeXt-M for Celeb-A, 9,237,608 parameters with 40 classes."""
    args = dict(MICRO, drop_path_rate=0.1)
    return create_convnext(ConvNeXt, "convnext_micro", pretrained, **dict(args, **kwargs))
