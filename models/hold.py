"""Convolutions of any model at another size than the trained one: their taps held over the pixels that they were trained on, or
left where they were, in trained pixels.

    model = timm.create_model("convnext_atto", checkpoint_path=...)
    s4nd.models.hold_convolutions(model, 64)      # trained at 64 x 64
    model(torch.randn(1, 3, 160, 160))            # every tap now covers 2.5 pixels
    s4nd.set_resample(model, "hold+dilate")       # every tap but the first layer's is now dilated by 2.5

The same as `resample` "hold" and "dilate" of S4ND layers (s4nd/conv/held.py and dilated.py have the mathematics), so that S4ND
layers can be compared with convolutions that do at unseen sizes what they do. Output o of a convolution with stride s stands
for the pixels [o s, (o + 1) s] of its input; tap a covers the pixel [o s - p + a d, o s - p + a d + 1], with padding p and
dilation d, that is, from the middle of the output, [a d - p - s / 2, a d - p - s / 2 + 1] trained pixels. With w pixels to
each trained one, pixel q from o s, which covers [q - s / 2, q - s / 2 + 1] / w of them, takes of every tap the share that it
covers. Dilated, the tap lies at the middle of its pixel, between the middles of two pixels q, which share it linearly. Padding
is with zeros.

Max and average pooling with windows larger than their stride, and position embeddings, are left as they are.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models import get_model_input_config
from torch import Tensor, nn

from s4nd import S4ND
from s4nd.conv import REGRID
from s4nd.nn.sampling import SampledModule, Sampling


class ResampledConv2d(nn.Conv2d, SampledModule):
    """A convolution trained on a grid of base_size, which is part of its state dict: at others its taps are held or dilated."""

    if TYPE_CHECKING:
        padding: tuple[int, int]

    @property
    def sampling(self) -> Sampling:
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        if not {*sampling.resample} <= {*REGRID}:
            raise ValueError(f"resample of a convolution must be one of {(*REGRID,)}, got {sampling.resample!r}")
        self._sampling = sampling

    @classmethod
    def of(cls, conv: nn.Conv2d, base_size: Sequence[int]) -> "ResampledConv2d":
        """The same convolution, with the parameters of `conv` themselves."""
        bias = conv.bias is not None
        options: dict[str, Any] = {
            "kernel_size": conv.kernel_size,
            "stride": conv.stride,
            "dilation": conv.dilation,
            "groups": conv.groups,
            "bias": bias,
            "device": "meta",
        }
        held = cls(conv.in_channels, conv.out_channels, padding=_paddings(conv), **options)
        held.sampling = Sampling(2, tuple(base_size), resample="hold")
        held.weight, held.bias = conv.weight, conv.bias
        return held.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        weight, padding = self.weight, []
        for axis in (0, 1):
            n, b = x.shape[2 + axis], self.base_size[axis]
            if n == b:
                padding.append([self.padding[axis]] * 2)
                continue
            first, A = shares(
                n,
                b,
                self.resample[axis],
                self.kernel_size[axis],
                self.stride[axis],
                self.padding[axis],
                self.dilation[axis],
            )
            A = A.to(weight)
            weight = torch.einsum("oiak,qa->oiqk", weight, A) if axis == 0 else torch.einsum("oika,qa->oikq", weight, A)
            s, taps = self.stride[axis], len(A)
            outputs = self._outputs(n, axis)
            padding.append([-first, (outputs - 1) * s + first + taps - n])
        dilation = tuple(d if x.shape[2 + i] == self.base_size[i] else 1 for i, d in enumerate(self.dilation))
        (top, bottom), (left, right) = padding
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, self.bias, self.stride, 0, dilation, self.groups)

    def _outputs(self, n: int, axis: int) -> int:
        """Of an axis of n pixels: as many as without holding."""
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (n + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


def shares(n: int, b: int, method: str, taps: int, stride: int, padding: int, dilation: int) -> tuple[int, Tensor]:
    """Which pixels of a grid of n take part in an output of a convolution trained on b, and their shares of every tap.

    Args:
        method: "hold" or "dilate".

    Returns:
        The first pixel, from the first one of the output's own stride, and (pixels, taps) float64.
    """
    w, centre = n / b, stride / 2
    begin = torch.arange(taps, dtype=torch.float64) * dilation - padding - centre  # of the taps, in trained pixels
    first = math.floor(centre + w * begin[0].item() + 1e-9)
    last = math.ceil(centre + w * (begin[-1].item() + 1) - 1e-9)
    if method == "dilate":
        first -= 1  # on a coarser grid a tap's two pixels reach further than what it covers
        middle = torch.arange(first, last + 1, dtype=torch.float64)[:, None] + 0.5 - centre
        return first, (1 - (middle - w * (begin + 0.5)).abs()).clamp(min=0)
    low = (torch.arange(first, last, dtype=torch.float64)[:, None] - centre) / w
    share = torch.minimum(low + 1 / w, begin + 1) - torch.maximum(low, begin)
    return first, share.clamp(min=0)


@torch.no_grad()
def hold_convolutions(model: nn.Module, size: int | Sequence[int]) -> list[str]:
    """Make every 2-D convolution of more than one tap hold its taps at other sizes than this one, in place.

    Args:
        size: pixels of the images that the model was trained on, one number or (height, width).

    Returns:
        Names of the convolutions.

    Raises:
        ValueError: one that cannot be held: its padding is not with zeros or not the same on both sides, or it is of a class of
            its own that does more than convolve.
    """
    convolutions = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and math.prod(module.kernel_size) > 1
        and not isinstance(module, ResampledConv2d)
    }
    for name, conv in convolutions.items():
        if type(conv).forward is not nn.Conv2d.forward or conv.padding_mode != "zeros":
            raise ValueError(
                f"{name} cannot be held: it is a {type(conv).__name__} with padding_mode={conv.padding_mode!r}"
            )
        _paddings(conv)
    if not convolutions:
        return []
    grids: dict[str, tuple[int, ...]] = {}
    hooks = [
        conv.register_forward_pre_hook(lambda module, args, name=name: grids.update({name: tuple(args[0].shape[2:])}))
        for name, conv in convolutions.items()
    ]
    height, width = (size, size) if isinstance(size, int) else size
    weight = next(model.parameters())
    if hasattr(model, "pretrained_cfg"):  # timm's; their first convolution may stand after other layers
        channels = get_model_input_config(model)["input_size"][0]
    else:  # not of the first that is held: other layers may stand before it
        first = next(module for module in model.modules() if isinstance(module, S4ND | nn.Conv2d))
        channels = first.d_model if isinstance(first, S4ND) else first.in_channels
    training = model.training
    try:
        model.eval()(torch.zeros(1, channels, height, width, dtype=weight.dtype, device=weight.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    for name, conv in convolutions.items():
        if name in grids:  # others take no part
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ResampledConv2d.of(conv, grids[name]))
    return list(grids)


def _paddings(conv: nn.Conv2d) -> tuple[int, int]:
    """Zeros on either side of each axis; ValueError if the sides differ."""
    if not isinstance(conv.padding, str):
        return conv.padding[0], conv.padding[1]
    reach = [d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise ValueError(
            f"a convolution with padding={conv.padding!r} and {conv.kernel_size} taps pads its sides differently"
        )
    return reach[0] // 2, reach[1] // 2
