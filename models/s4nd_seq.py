"""S4ND-Seq: images as sequences, one sample after the other in raster order, with 1-D S4ND layers (pixel-level classification).

An isotropic network, see isotropic.py. 1-D state-space models on the pixels of CIFAR-10: Gu et al. 2022, arXiv:2111.00396.
Shapes: B batch, H channels (embed_dim), L steps; the grid (height, width) is the image's, or (height, C width) of C values a
pixel, and its steps are in raster order: row after row, from left to right.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from .isotropic import Isotropic
from .isotropic_family import create_isotropic, isotropic_cfg
from .s4nd_iso import S4NDMixer

STEPS = ("pixel", "value")


class SequenceMixer(S4NDMixer):
    """S4NDMixer with a 1-D layer over the steps of a grid in raster order, (B, H, height, width) -> the same.

    Args:
        base_size: steps in training, (L,).
    """

    def _convolve(self, x: Tensor) -> Tensor:
        return self.s4nd(x.flatten(2)).unflatten(2, x.shape[2:])


class SequenceIsotropic(Isotropic):
    """Isotropic classifier of images as sequences with timm's model protocol, (B, in_chans, height, width) -> (B, num_classes).

    Features lie on the grid whose steps the layers see in raster order: (B, H, height, width) with steps="pixel", and
    (B, H, height, in_chans width) with steps="value".

    At another size than the trained one the sequence is the same stretch of time in other steps, of length L_trained / L (see
    `resample` of S4ND for other methods). For the image that is true of a change of the width, with steps="pixel". A change of
    the height by a factor s is not such a change of a raster: what was a row apart still is, but what was a pixel apart along a
    row is now s pixels. With steps="value" neighbours may be of another channel too. No accuracy is to be expected there;
    images resized to the trained size keep it (`s4nd eval --control`).

    Args:
        steps: "pixel": height * width steps of in_chans channels; "value": in_chans * height * width steps of one channel, the
            values of a pixel (R, G, B) one after the other.
        args, kwargs: of `Isotropic`, and of the S4ND layers: bidirectional, False for a causal model, whose features at a
            step do not depend on later ones (its logits are of their mean over all steps); disc, the discretisation: zoh,
            bilinear, dirac or async. At the trained size async is zoh.
    """

    def __init__(self, *args: Any, steps: str = "pixel", **kwargs: Any):
        if steps not in STEPS:
            raise ValueError(f"steps must be one of {STEPS}, got {steps!r}")
        self.steps = steps  # before the layers are built, whose length follows from it
        super().__init__(*args, **kwargs)

    def _samples(self) -> tuple[int, tuple[int, ...]]:
        height, width = self.img_size
        if self.steps == "pixel":
            return self.in_chans, (height * width,)
        return 1, (self.in_chans * height * width,)

    def _read(self, x: Tensor) -> Tensor:
        if self.steps == "pixel":
            return x
        return x.permute(0, 2, 3, 1).flatten(2).unsqueeze(1)  # (B, 1, height, in_chans width)


default_cfgs = generate_default_cfgs({"s4nd_seq_tiny": isotropic_cfg(), "s4nd_seq_small": isotropic_cfg()})


_create = partial(create_isotropic, SequenceIsotropic, mixer=SequenceMixer)
# For sequences of 1,024 pixels, as is usual; two-sided, as state-spaces/s4 is on CIFAR-10.
SEQUENCE = dict(kernel="s4d", init="lin", dt_min=0.001, dt_max=0.1, bidirectional=True)


@register_model
def s4nd_seq_tiny(pretrained: bool = False, **kwargs: Any) -> SequenceIsotropic:
    """4 x 64, S4D-Lin with N = 32: trains on a CPU in minutes."""
    args = dict(SEQUENCE, embed_dim=64, depth=4, d_state=32)
    return _create("s4nd_seq_tiny", pretrained, **dict(args, **kwargs))


@register_model
def s4nd_seq_small(pretrained: bool = False, **kwargs: Any) -> SequenceIsotropic:
    """6 x 256, S4D-Lin with N = 64."""
    args = dict(SEQUENCE, embed_dim=256, depth=6, proj_drop_rate=0.1)
    return _create("s4nd_seq_small", pretrained, **dict(args, **kwargs))
