"""S4ND-ISO and its convolutional twins: isotropic networks that differ in their mixing layer only.

Nguyen et al. 2022, arXiv:2210.06583: CIFAR-10 (8 x 512) and the change of resolution without retraining (6 x 256).
Shapes: B batch, H channels, the grid (height, width) is the image's.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import LayerType, create_act_layer
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd import S4ND

from .isotropic import Isotropic
from .isotropic_family import create_isotropic, isotropic_cfg
from .shipped import shipped_cfg


def _activation(act_layer: LayerType) -> nn.Module:
    try:
        act = create_act_layer(act_layer)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"act_layer must be timm's name of an activation or a module's class, got {act_layer!r}"
        ) from error
    if act is None:
        raise ValueError(
            "act_layer must be timm's name of an activation or a module's class; for none it is 'identity'"
        )
    return act


class Mixer(nn.Module):
    """Convolution over the grid -> activation -> Dropout -> 1x1 convolution -> GLU or nothing, (B, H, ...) -> the same."""

    def _set_pointwise(
        self, in_dim: int, dim: int, drop: float, act_layer: LayerType, glu: bool, dd: dict[str, Any]
    ) -> None:
        """What follows the convolution, from its in_dim channels to dim; called after it, so that it is drawn first."""
        self.act = _activation(act_layer)
        self.drop = nn.Dropout2d(drop)
        self.proj = nn.Conv2d(in_dim, 2 * dim if glu else dim, 1, **dd)
        self.glu = nn.GLU(dim=1) if glu else nn.Identity()

    def _convolve(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.glu(self.proj(self.drop(self.act(self._convolve(x)))))


class S4NDMixer(Mixer):
    """S4ND -> GELU -> Dropout -> 1x1 convolution -> GLU, (B, H, height, width) -> the same.

    Args:
        dim: H.
        base_size: grid in training, (height, width); one entry per axis of the S4ND layer.
        channels: kernels of the S4ND layer per channel.
        drop: dropout rate of whole channels.
        act_layer: the activation, as timm names it.
        glu: gate the output; False for the one of the convolution's twin, whose 1x1 convolution has half of the parameters.
        s4nd_args: every other argument of S4ND.
    """

    def __init__(
        self,
        dim: int,
        *,
        base_size: tuple[int, ...],
        channels: int = 1,
        drop: float = 0.0,
        act_layer: LayerType = "gelu",
        glu: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4nd_args: Any,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.s4nd = S4ND(dim, ndim=len(base_size), base_size=base_size, channels=channels, **s4nd_args, **dd)
        self._set_pointwise(dim * channels, dim, drop, act_layer, glu, dd)

    def _convolve(self, x: Tensor) -> Tensor:
        return self.s4nd(x)


class ConvMixer(Mixer):
    """Depthwise convolution -> GELU -> Dropout -> 1x1 convolution, (B, H, height, width) -> the same.

    Args:
        dim: H.
        base_size: not used; a convolution's taps are pixels, whatever the resolution.
        kernel_size: taps per axis, odd.
        drop: dropout rate of whole channels.
        act_layer: the activation, as timm names it.
        glu: gate the output, as S4ND's twin does: then the two differ in the kernel alone.
    """

    def __init__(
        self,
        dim: int,
        *,
        base_size: tuple[int, int],
        kernel_size: int = 3,
        drop: float = 0.0,
        act_layer: LayerType = "gelu",
        glu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding="same", groups=dim, **dd)
        self._set_pointwise(dim, dim, drop, act_layer, glu, dd)

    def _convolve(self, x: Tensor) -> Tensor:
        return self.conv(x)


default_cfgs = generate_default_cfgs(
    {
        "s4nd_iso_tiny.cifar10": isotropic_cfg(**shipped_cfg("s4nd_iso_tiny.cifar10")),
        "s4nd_iso_tiny.photos": isotropic_cfg(**shipped_cfg("s4nd_iso_tiny.photos")),
        "s4nd_iso_tiny.*": isotropic_cfg(),  # of the name alone, which has no weights: the tags are of different things
        "s4nd_iso_small": isotropic_cfg(),
        "s4nd_iso_base": isotropic_cfg(),
        "conv_iso_tiny": isotropic_cfg(),
        "conv_iso_small": isotropic_cfg(),
        "conv_iso_base": isotropic_cfg(),
    }
)


_create_isotropic = partial(create_isotropic, Isotropic)

# At other sizes: trained at 8 x 8 without a bandlimit, what keeps its accuracy on CIFAR-10 up to 32 x 32 (README).
RESAMPLE = "hold+dilate"


@register_model
def s4nd_iso_tiny(pretrained: bool = False, **kwargs: Any) -> Isotropic:
    """4 x 64, S4D-LegS: trains on a CPU in minutes, and in few epochs to more than S4D-Lin (docs/results/recipes.md)."""
    args = dict(embed_dim=64, depth=4, kernel="s4d", init="legs", d_state=32, dt_min=0.1, dt_max=1.0, resample=RESAMPLE)
    return _create_isotropic("s4nd_iso_tiny", pretrained, mixer=S4NDMixer, **dict(args, **kwargs))


@register_model
def s4nd_iso_small(pretrained: bool = False, **kwargs: Any) -> Isotropic:
    """6 x 256, S4D-Lin: the paper's network for the change of resolution; it takes a bandlimit."""
    args = dict(
        embed_dim=256, depth=6, proj_drop_rate=0.1, kernel="s4d", init="lin", dt_min=0.1, dt_max=1.0, resample=RESAMPLE
    )
    return _create_isotropic("s4nd_iso_small", pretrained, mixer=S4NDMixer, **dict(args, **kwargs))


@register_model
def s4nd_iso_base(pretrained: bool = False, **kwargs: Any) -> Isotropic:
    """8 x 512, S4-LegS: the paper's S4ND-ISO for CIFAR-10, 5,282,826 parameters."""
    args = dict(
        embed_dim=512, depth=8, proj_drop_rate=0.1, kernel="s4", init="legs", dt_min=0.1, dt_max=1.0, resample=RESAMPLE
    )
    return _create_isotropic("s4nd_iso_base", pretrained, mixer=S4NDMixer, **dict(args, **kwargs))


@register_model
def conv_iso_tiny(pretrained: bool = False, **kwargs: Any) -> Isotropic:
    """4 x 64, depthwise 3x3: the twin of s4nd_iso_tiny."""
    args = dict(embed_dim=64, depth=4)
    return _create_isotropic("conv_iso_tiny", pretrained, mixer=ConvMixer, **dict(args, **kwargs))


@register_model
def conv_iso_small(pretrained: bool = False, **kwargs: Any) -> Isotropic:
    """6 x 256, depthwise 3x3: the twin of s4nd_iso_small."""
    args = dict(embed_dim=256, depth=6, proj_drop_rate=0.1)
    return _create_isotropic("conv_iso_small", pretrained, mixer=ConvMixer, **dict(args, **kwargs))


@register_model
def conv_iso_base(pretrained: bool = False, **kwargs: Any) -> Isotropic:
    """8 x 512, depthwise 3x3: the paper's Conv2D-ISO, 2,158,602 parameters."""
    args = dict(embed_dim=512, depth=8, proj_drop_rate=0.1)
    return _create_isotropic("conv_iso_base", pretrained, mixer=ConvMixer, **dict(args, **kwargs))
