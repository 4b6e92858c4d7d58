"""What `replace` can take the place of in timm's models: depthwise convolutions, blocks of them, and self-attention.

timm's classes are named here and looked up when `replace` runs: a timm that lacks one has no model with it.
"""

from collections.abc import Iterable
from importlib import import_module

from timm.layers import CondConv2d, Conv2dSame, ScaledStdConv2dSame, StdConv2dSame
from torch import nn

# Blocks of parallel branches that amount to one depthwise convolution, and those of their modules that come after the branches.
BLOCKS = {
    "timm.models.repvit.RepVggDw": (),
    "timm.models.fastvit.RepMixer": (),
    "timm.models.fastvit.RepConditionalPosEnc": (),
    "timm.models.fastvit.MobileOneBlock": ("se", "act"),
    "timm.models.fastvit.ReparamLargeKernelConv": ("se", "act"),
    "timm.models.byobnet.MobileOneBlock": ("attn", "act"),
}
SAME_CONVS = (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame)  # these pad in their forward

# Self-attention of every token to every other: (B, N, C) -> (B, N, C), the grid's (B, C, h, w) -> (B, C, h, w).
ATTENTION = (
    "timm.layers.Attention",
    "timm.layers.AttentionRope",
    "timm.layers.DiffAttention",
    "timm.models.eva.EvaAttention",
    "timm.models.beit.Attention",
    "timm.models.vision_transformer_relpos.RelPosAttention",
    "timm.models.metaformer.Attention",
    "timm.models.cait.TalkingHeadAttn",
    "timm.models.fastvit.Attention",
)


def timm_classes(names: Iterable[str]) -> tuple[type[nn.Module], ...]:
    """The classes of these names that the installed timm has."""
    return tuple(cls for cls in map(_timm_class, names) if cls is not None)


def _timm_class(name: str) -> type[nn.Module] | None:
    module, _, cls = name.rpartition(".")
    try:
        return getattr(import_module(module), cls, None)
    except ModuleNotFoundError:
        return None


def after_the_branches(block: nn.Module) -> list[nn.Module]:
    """The modules of a block of parallel branches that come after them."""
    return [
        getattr(block, part)
        for name, parts in BLOCKS.items()
        if isinstance(block, timm_classes([name]))
        for part in parts
    ]


def find_depthwise(model: nn.Module) -> dict[nn.Module, nn.Conv2d]:
    """What to replace, each with a convolution that says how: itself, or a branch of a block to replace as a whole."""
    found: dict[nn.Module, nn.Conv2d] = {}
    in_blocks: set[nn.Module] = set()
    blocks = timm_classes(BLOCKS)
    for name, module in list(model.named_modules())[1:]:
        if module in in_blocks:
            continue
        is_block = isinstance(module, blocks)
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


def find_attention(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """What to replace, each with itself."""
    attention = timm_classes(ATTENTION)
    found = {m: m for m in list(model.modules())[1:] if isinstance(m, attention)}
    if not found:
        names = {type(m).__name__ for m in model.modules()}
        others = sorted(name for name in names if "attention" in name.lower() or "attn" in name.lower())
        raise ValueError(
            "replace(target='attention') needs self-attention of all tokens to each other, as a VisionTransformer has; "
            f"{type(model).__name__} has {'another kind, ' + ', '.join(others) if others else 'no attention'}"
        )
    return found
