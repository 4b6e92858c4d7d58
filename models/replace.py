"""S4ND in place of the depthwise convolutions or the self-attention of any timm model.

    model = s4nd.models.replace(timm.create_model("convnext_atto"), img_size=64, kernel="s4d")
    model = s4nd.models.replace(timm.create_model("deit_tiny_patch16_224"), "attention")

The new layers are freshly drawn, all others keep their weights. Shapes: B batch, C channels, N tokens, (h, w) a grid.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import get_model_input_config
from torch import Tensor, nn

from s4nd import S4ND

from .replaceable import after_the_branches, find_attention, find_depthwise
from .s4nd_vit import PatchMixer

FUSING = ("fuse", "reparameterize", "switch_to_deploy")  # the methods that timm's reparameterize_model looks for

# The paper's settings on ImageNet, of its ConvNeXt and of its ViT; other kernels than s4 have their own.
PAPER = {
    "depthwise": dict(init="fout", dt_min=0.1, dt_max=1.0),
    "attention": dict(init="legs", dt_min=0.001, dt_max=0.1),
}


def replace(
    model: nn.Module,
    target: str = "depthwise",
    *,
    img_size: int | tuple[int, int] | None = None,
    **s4nd_options: Any,
) -> nn.Module:
    """Swap layers of a model for S4ND layers, in place; inputs and outputs of the model keep their shapes.

    The new layers count as trained on the grids that they see at `img_size` (`base_size`), have no bias, and take device,
    dtype and training mode from what they replace. Modules that timm could fuse only as a whole are fused part by part.

    target="depthwise": every depthwise Conv2d of more than one tap; its window is gone, the kernels span the grid.
        One with a stride becomes S4ND and an average pooling over the stride, as in the paper's downsampling (the last window
        may be cut off, so that an axis of n gives ceil(n / stride) as before). One with C outputs per channel becomes S4ND
        with channels=C, whose outputs are in another order: c H + h, not h C + c. A block of parallel depthwise branches
        (MobileOne, FastViT, RepViT) becomes one S4ND layer with a batch norm; its identity branch is the layer's D = 1.
        Refused: a convolution that does not keep the grid (up to its stride), and CondConv2d, a kernel per image.
    target="attention": self-attention of all tokens becomes S4ND -> GELU -> Linear -> GLU, over the sequence of tokens with
        class and register tokens at their place in it, or over the grid where the layer sees one (FastViT). A sequence of
        another length is the same one sampled differently, these tokens included. Rotary and relative position embeddings
        are not used: the kernels know distances. A mask is an error in forward. Attention of another kind stays (a class
        token's in CaiT, attention pooling); a model that has no other is refused: windows (Swin), mask units (Hiera) and
        channels (XCiT) are not all tokens.

    Args:
        model: of timm, or any that takes images (B, in_chans, height, width).
        target: "depthwise" or "attention".
        img_size: image size in training, one number or (height, width); None for the model's own.
        s4nd_options: arguments of every S4ND layer, for attention also `channels` (2 if not given). With kernel="s4", the
            default, init and dt are the paper's if not given: fout, 0.1 to 1 for depthwise; legs, 0.001 to 0.1 for attention.

    Returns:
        The model itself.

    Raises:
        ValueError: nothing to replace, or something that cannot be; the model is as it was.
        TypeError: an option that S4ND does not take, or that `replace` sets.
    """
    if target not in PAPER:
        raise ValueError(f"target must be one of {sorted(PAPER)}, got {target!r}")
    set_here = {"d_model", "ndim", "base_size", "pool", "out_channels", "device", "dtype"}
    set_here |= {"channels"} if target == "depthwise" else {"dim", "drop"}
    if taken := sorted(set_here & set(s4nd_options)):
        raise TypeError(f"replace sets {', '.join(taken)} by the layers it finds; they are no options")
    if s4nd_options.get("kernel", "s4") == "s4":
        s4nd_options = PAPER[target] | s4nd_options
    depthwise = target == "depthwise"
    found: Mapping[nn.Module, nn.Module] = find_depthwise(model) if depthwise else find_attention(model)
    build: Callable[..., nn.Module] = _depthwise_layer if depthwise else AttentionMixer.of
    shapes = _shapes(model, set(found.values()), img_size)
    new = {}
    for old, seen in found.items():
        new[old] = build(old, seen, *shapes[seen], **s4nd_options).train(seen.training)
    _keep_from_fusing(model, new)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
    return model


class AttentionMixer(nn.Module):
    """S4ND -> GELU -> Linear -> GLU in place of self-attention, (B, N, C) -> (B, N, C) or (B, C, h, w) -> (B, C, h, w).

    Args:
        mixer: over the tokens as a grid of one row, or over a grid.
    """

    def __init__(self, mixer: PatchMixer):
        super().__init__()
        self.mixer = mixer

    @classmethod
    def of(cls, old: Any, seen: nn.Module, before: torch.Size, after: torch.Size, **options: Any) -> "AttentionMixer":
        """In place of `old`, whose input at the trained size has the shape `before`."""
        if before != after:
            raise ValueError(
                f"replace needs attention that keeps the shape, got {tuple(before)} -> {tuple(after)} in {old}"
            )
        weight = next(old.parameters())
        options |= dict(drop=old.proj_drop.p, device=weight.device, dtype=weight.dtype)
        if len(before) == 4:
            return cls(PatchMixer(before[1], (before[2], before[3]), ndim=2, **options))
        return cls(PatchMixer(before[2], (1, before[1]), ndim=1, **options))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rope: Tensor | None = None,
        shared_rel_pos: Tensor | None = None,
        shared_rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        """The arguments after x are those of timm's attention: a mask is refused, positions are not used."""
        if self.mixer.ndim == 2:
            return self.mixer(x.permute(0, 2, 3, 1), attn_mask, is_causal).permute(0, 3, 1, 2)
        return self.mixer(x.unsqueeze(1), attn_mask, is_causal).squeeze(1)


def _depthwise_layer(
    old: nn.Module, conv: nn.Conv2d, before: torch.Size, after: torch.Size, **options: Any
) -> nn.Module:
    """In place of `conv`, or of `old`, the block around it; `before` is the shape of its input at the trained size."""
    dd: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    channels = conv.out_channels // conv.in_channels
    s4nd = S4ND(conv.in_channels, ndim=2, channels=channels, base_size=before[2:], **options, **dd)
    layers: list[nn.Module] = [s4nd]
    if max(conv.stride) > 1:
        layers.append(nn.AvgPool2d(to_2tuple(conv.stride), ceil_mode=True))
    elif old is not conv and channels == 1 and s4nd.D is not None and not s4nd.D.is_meta:
        nn.init.ones_(s4nd.D)
    if old is not conv:
        layers.append(nn.BatchNorm2d(conv.out_channels, **dd))
        layers += after_the_branches(old)
    return s4nd if len(layers) == 1 else nn.Sequential(*layers)


@torch.no_grad()
def _shapes(
    model: nn.Module, modules: Collection[nn.Module], img_size: int | tuple[int, int] | None
) -> dict[nn.Module, tuple[torch.Size, torch.Size]]:
    """Input and output shape of each module in a run of the model in evaluation mode, which leaves no trace in it."""
    in_chans, *own_size = get_model_input_config(model)["input_size"]
    size = own_size if img_size is None else to_2tuple(img_size)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"img_size must be a positive integer or two, (height, width), got {img_size!r}")
    shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        shapes.setdefault(module, (args[0].shape, output.shape))

    weight = next(p for p in model.parameters() if p.is_floating_point())
    hooks = [module.register_forward_hook(note) for module in modules]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        model(torch.zeros(1, in_chans, *size, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    missed = [name for name, module in model.named_modules() if module in modules and module not in shapes]
    if missed:
        raise ValueError(f"replace needs to see the grid of each layer; a run of the model does not reach {missed}")
    return shapes


def _keep_from_fusing(model: nn.Module, replaced: Collection[nn.Module]) -> None:
    """Modules whose own fusing would read the weights of what is replaced are left to be fused part by part."""
    for module in list(model.modules())[1:]:
        if any(part in replaced for part in list(module.modules())[1:]):
            for name in FUSING:
                if hasattr(type(module), name):
                    setattr(module, name, partial(_itself, module))


def _itself(module: nn.Module) -> nn.Module:
    return module
