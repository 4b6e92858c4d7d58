"""Views of a clip that show what moves in place of the frames, so that neither scene, light nor contrast tells clips apart.

They take frames that are not rounded: in dark videos changes are below one grey value.
"""

import torch
from torch import Tensor

MOTION_RANGE = 4.0  # up to which change is shown, in units of its root mean square over the clip
GREY, STD = 115.0, 40.0  # of a clip in which only what moves is left


def changes(clips: Tensor) -> Tensor:
    """How much each pixel of clips (..., T, 3, height, width), 0 to 255, changes from frame to frame: the same shape, uint8.

    255 sqrt(min(1, |d| / (MOTION_RANGE r))) with d = x[t + 1] - x[t] in grey and r the root mean square of d over the clip. The
    last frame is as the one before.
    """
    change = clips.float().mean(-3, keepdim=True).diff(dim=-4).abs_()
    usual = change.square().mean((-4, -3, -2, -1), keepdim=True).sqrt().clamp(min=1)  # of a still clip: 0
    shown = change.div_(MOTION_RANGE * usual).clamp_(max=1).sqrt_().mul_(255).round_().byte()
    return torch.cat([shown, shown[..., -1:, :, :, :]], -4).expand(clips.shape)


def moving(clips: Tensor) -> Tensor:
    """Clips (..., T, 3, height, width), 0 to 255, less each pixel's mean over the clip, on GREY: the same shape, uint8.

    Each channel of a clip is brought to a standard deviation of STD.
    """
    x = clips.float()
    x = x - x.mean(-4, keepdim=True)
    std = x.square().mean((-4, -2, -1), keepdim=True).sqrt().clamp(min=1)  # of a still clip: 0
    return x.mul_(STD / std).add_(GREY).round_().clamp_(0, 255).byte()


MOTION = {"changes": changes, "moving": moving}
