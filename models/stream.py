"""A video model run frame by frame, with a state of constant size.

    model = timm.create_model("s4nd_convnext3d_micro", causal=True, num_frames=0).eval()
    stream, state = s4nd.models.stream(model), None
    with torch.no_grad():
        for frame in video.unbind(2):  # video (B, 3, T, height, width)
            logits, state = stream(frame, state)  # model(video[:, :, : t + 1]), None for the very first frame

The S4ND layers run by their recurrence over time; a layer whose kernels end after `l_max` samples of time (that of the stem)
sees the samples that these reach; the pooling before the classifier is a running mean.
Shapes: B batch, C channels, T frames; a patch is 2 frames.
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from s4nd import S4ND

from .convnext3d import TEMPORAL_PATCH, VideoBlock
from .s4nd_convnext3d import S4NDConvNeXt3d

State = dict[str, Tensor]
FORM, FRAME, MEAN, PATCHES = "form", "frame", "mean", "patches"  # keys beside the names of the layers


def stream(model: nn.Module) -> "Stream":
    """The model as a function (frame, state) -> (logits, state).

    Args:
        model: an S4NDConvNeXt3d built with causal=True and num_frames=0, so that no output depends on what comes later.

    Raises:
        ValueError: a model that cannot run frame by frame; the message says how to build one.
    """
    return Stream(model)


class Stream:
    """See `stream`. It holds nothing but the model, whose later changes it follows."""

    def __init__(self, model: nn.Module):
        if not isinstance(model, S4NDConvNeXt3d):
            raise ValueError(
                "stream needs an S4NDConvNeXt3d, such as timm.create_model('s4nd_convnext3d_tiny', causal=True, "
                f"num_frames=0): other layers have no recurrence over time; got {type(model).__name__}"
            )
        self.names = {layer: name for name, layer in model.named_modules() if isinstance(layer, S4ND)}
        for layer, name in self.names.items():
            _check(layer, name)
        if any(isinstance(module, GlobalResponseNorm) for module in model.modules()):
            raise ValueError("stream needs a model with use_grn=False: response normalisation is over the whole video")
        pool = model.head.global_pool.pool_type
        if pool != "avg":
            raise ValueError(f"stream needs a model with global_pool='avg', a running mean, got {pool!r}")
        self.model = model

    def __call__(self, frames: Tensor, state: State | None = None) -> tuple[Tensor | None, State]:
        """One more frame, or several.

        Args:
            frames: (B, C, height, width), or (B, C, T, height, width) for T frames at once; batch, size, dtype and device stay
                those of the first.
            state: what the call before returned; None starts a video. A dict of tensors whose first axis is B, which may be
                detached, moved or indexed by video: layers' states (float64, see S4ND.step), the mean of the features, the
                form of the frames (an empty tensor) and, in the middle of a patch, the frame that waits.

        Returns:
            logits (B, num_classes) of all complete patches so far, which is what the model gives for all frames so far (a
            last odd one does not count there either); None before the first patch is complete. And the new state.
        """
        state = {} if state is None else dict(state)
        if frames.ndim not in (4, 5) or frames.shape[1] != self.model.in_chans or 0 in frames.shape:
            raise ValueError(
                f"frames must be (B, {self.model.in_chans}, height, width), or with several frames as axis 2, "
                f"got {tuple(frames.shape)}"
            )
        clip = frames.unsqueeze(2) if frames.ndim == 4 else frames
        form = clip.new_empty(len(clip), 0, *clip.shape[3:])  # no number, but all that must not change
        first = _described(state.setdefault(FORM, form), clip.shape[1])
        if (given := _described(form, clip.shape[1])) != first:
            raise ValueError(f"frames must stay {first}, got {given}")
        if FRAME in state:
            clip = torch.cat([state.pop(FRAME).unsqueeze(2), clip], dim=2)
        for patch in clip.split(TEMPORAL_PATCH, dim=2):
            if patch.shape[2] == TEMPORAL_PATCH:
                self._advance(patch, state)
            else:
                state[FRAME] = patch[:, :, 0].clone()  # a view would keep the whole clip
        return self._logits(state), state

    def _advance(self, x: Tensor, state: State) -> None:
        """One patch (B, C, 2, height, width) through the features into their running mean."""
        model = self.model
        x = self._run(model.stem, x, state)
        stages: Iterable[Any] = model.stages
        for stage in stages:
            x = self._run(stage.blocks, self._run(stage.downsample, x, state), state)
        x = model.norm_pre(x).mean(dim=(2, 3, 4))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        count = state.get(PATCHES, torch.zeros(len(x), 1, dtype=torch.long, device=x.device)) + 1
        mean = state.get(MEAN, torch.zeros_like(x))
        state |= {PATCHES: count, MEAN: mean + (x - mean) / count}

    def _logits(self, state: State) -> Tensor | None:
        if MEAN not in state:
            return None
        norm: Any = self.model.stem[-1]
        features = state[MEAN].to(norm.weight.dtype)
        return self.model.forward_head(features[:, :, None, None, None])

    def _run(self, module: nn.Module, x: Tensor, state: State) -> Tensor:
        """What the module gives at this instant; the states of the S4ND layers in it are replaced."""
        if isinstance(module, nn.Sequential):
            for child in module:
                x = self._run(child, x, state)
            return x
        if isinstance(module, VideoBlock):
            return module.residual(x, self._run(module.conv_dw, x, state))
        if not isinstance(module, S4ND):
            return module(x)
        name = self.names[module]
        if module.l_max[0] is None:
            y, state[name] = module.step(x[:, :, 0], state.get(name))
            return y.unsqueeze(2)
        return self._window(module, x, state, name)

    def _window(self, layer: S4ND, x: Tensor, state: State, name: str) -> Tensor:
        """The last outputs of a layer with kernels of l_max samples in time, from as many samples of before."""
        pool = layer.pool[0]
        seen = -(-(layer.l_max[0] - 1) // pool) * pool  # whole windows of the pooling
        before = state.get(name, x.new_zeros(*x.shape[:2], seen, *x.shape[3:]))
        x = torch.cat([before, x], dim=2)
        state[name] = x[:, :, x.shape[2] - seen :].clone()
        return layer(x)[:, :, seen // pool :]


def _described(form: Tensor, channels: int) -> str:
    B, _, *size = form.shape
    return f"{(B, channels, *size)} {str(form.dtype).removeprefix('torch.')} on {form.device}"


def _check(layer: S4ND, name: str) -> None:
    build = "build the model with causal=True and num_frames=0"
    if layer.bidirectional[0]:
        raise ValueError(f"stream needs time to be causal, {name} sees later frames: {build}")
    if layer.base_size[0] is not None:
        raise ValueError(
            f"stream needs time that extends, {name} re-samples it to {layer.base_size[0]} samples: {build}"
        )
    if layer.kernels[0].needs_length:
        raise ValueError(
            f"stream needs kernels that do not depend on the length, got {layer.kernels[0].name!r} in {name}"
        )
    if layer.pool[0] > 1 and layer.l_max[0] is None:
        raise ValueError(f"stream needs l_max for the time of {name}, which pools it, got l_max={layer.l_max}")
