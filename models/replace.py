"""S4ND in place of the depthwise convolutions or the self-attention of any timm model.

    model = s4nd.models.replace(timm.create_model("convnext_atto"), img_size=64, kernel="s4d")
    model = s4nd.models.replace(timm.create_model("deit_tiny_patch16_224"), "attention")

The new layers are freshly drawn, all others keep their weights. Shapes: B batch, C channels, N tokens, (h, w) a grid.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from timm.layers import (
    Attention,
    AttentionRope,
    CondConv2d,
    Conv2dSame,
    DiffAttention,
    ScaledStdConv2dSame,
    StdConv2dSame,
    to_2tuple,
)
from timm.models import get_model_input_config
from timm.models.beit import Attention as BeitAttention
from timm.models.byobnet import MobileOneBlock as ByobMobileOneBlock
from timm.models.cait import TalkingHeadAttn
from timm.models.eva import EvaAttention
from timm.models.fastvit import Attention as GridAttention
from timm.models.fastvit import MobileOneBlock, ReparamLargeKernelConv, RepConditionalPosEnc, RepMixer
from timm.models.metaformer import Attention as MetaFormerAttention
from timm.models.repvit import RepVggDw
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from s4nd import S4ND

from .s4nd_vit import PatchMixer

# Blocks of parallel branches that amount to one depthwise convolution, and those of their modules that come after the branches.
BLOCKS = {
    RepVggDw: (),
    RepMixer: (),
    RepConditionalPosEnc: (),
    MobileOneBlock: ("se", "act"),
    ReparamLargeKernelConv: ("se", "act"),
    ByobMobileOneBlock: ("attn", "act"),
}
SAME_CONVS = (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame)  # these pad in their forward
FUSING = ("fuse", "reparameterize", "switch_to_deploy")  # the methods that timm's reparameterize_model looks for

# Self-attention of every token to every other: (B, N, C) -> (B, N, C), the grid's (B, C, h, w) -> (B, C, h, w).
ATTENTION = (
    Attention,
    AttentionRope,
    DiffAttention,
    EvaAttention,
    BeitAttention,
    RelPosAttention,
    MetaFormerAttention,
    TalkingHeadAttn,
    GridAttention,
)

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
    if target == "depthwise":
        found, build = _find_depthwise(model), _depthwise_layer
    else:
        found, build = _find_attention(model), AttentionMixer.of
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
    def of(cls, old: nn.Module, seen: nn.Module, before: torch.Size, after: torch.Size, **options: Any):
        """In place of `old`, whose input at the trained size has the shape `before`."""
        if before != after:
            raise ValueError(
                f"replace needs attention that keeps the shape, got {tuple(before)} -> {tuple(after)} in {old}"
            )
        weight = next(old.parameters())
        options |= dict(drop=old.proj_drop.p, device=weight.device, dtype=weight.dtype)
        if len(before) == 4:
            return cls(PatchMixer(before[1], before[2:], ndim=2, **options))
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


def _find_depthwise(model: nn.Module) -> dict[nn.Module, nn.Conv2d]:
    """What to replace, each with a convolution that says how: itself, or a branch of a block to replace as a whole."""
    found: dict[nn.Module, nn.Conv2d] = {}
    in_blocks: set[nn.Module] = set()
    for name, module in list(model.named_modules())[1:]:
        if module in in_blocks:
            continue
        is_block = isinstance(module, tuple(BLOCKS))
        convs = [m for m in (module.modules() if is_block else [module]) if _is_depthwise(m)]
        if convs:
            _check_keeps_grid(name, convs[0])
            found[module] = convs[0]
            in_blocks.update(module.modules() if is_block else ())
    if not found:
        count = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        raise ValueError(
            "replace(target='depthwise') needs a Conv2d with groups == in_channels and a kernel of more than one tap; none "
            f"of the {count} Conv2d of {type(model).__name__} is one"
        )
    return found


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d | CondConv2d) or max(module.kernel_size) == 1:
        return False
    return module.groups == module.in_channels > 1  # a single channel is a grey image's, in a stem


def _check_keeps_grid(name: str, conv: nn.Conv2d | CondConv2d) -> None:
    keeps = conv.padding == "same" or isinstance(conv, SAME_CONVS)
    if not keeps and not isinstance(conv.padding, str):
        keeps = all(2 * p == d * (k - 1) for p, d, k in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True))
    if isinstance(conv, CondConv2d) or not keeps:
        raise ValueError(
            "replace(target='depthwise') needs convolutions whose kernel is the same for every image and which keep the grid, "
            f"or give ceil(n / stride); {name} is {conv}"
        )


def _depthwise_layer(
    old: nn.Module, conv: nn.Conv2d, before: torch.Size, after: torch.Size, **options: Any
) -> nn.Module:
    """In place of `conv`, or of `old`, the block around it; `before` is the shape of its input at the trained size."""
    dd = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    channels = conv.out_channels // conv.in_channels
    s4nd = S4ND(conv.in_channels, ndim=2, channels=channels, base_size=before[2:], **options, **dd)
    layers: list[nn.Module] = [s4nd]
    if max(conv.stride) > 1:
        layers.append(nn.AvgPool2d(conv.stride, ceil_mode=True))
    elif old is not conv and channels == 1 and not s4nd.D.is_meta:
        nn.init.ones_(s4nd.D)
    if old is not conv:
        layers.append(nn.BatchNorm2d(conv.out_channels, **dd))
        layers += [getattr(old, name) for cls, names in BLOCKS.items() if isinstance(old, cls) for name in names]
    return s4nd if len(layers) == 1 else nn.Sequential(*layers)


def _find_attention(model: nn.Module) -> dict[nn.Module, nn.Module]:
    found = {m: m for m in list(model.modules())[1:] if isinstance(m, ATTENTION)}
    if not found:
        names = {type(m).__name__ for m in model.modules()}
        others = sorted(name for name in names if "attention" in name.lower() or "attn" in name.lower())
        raise ValueError(
            "replace(target='attention') needs self-attention of all tokens to each other, as a VisionTransformer has; "
            f"{type(model).__name__} has {'another kind, ' + ', '.join(others) if others else 'no attention'}"
        )
    return found


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
