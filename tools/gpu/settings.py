"""What tools/bench_gpu.py measures, and what a section is to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

Values = dict[str, float | str | bool]


class Row(NamedTuple):
    """One thing to measure: what it is compared within, who it is, and what measures it. If that raises, the error is noted."""

    of: str
    contestant: str
    measure: Callable[[], Values]


@dataclass(frozen=True)
class Settings:
    """Sizes are (H, n_1, ..., n_D).

    Attributes:
        seconds: of measuring one time, about.
        stages: ConvNeXt-T's.
        attention: channels, heads, and lengths of sequences; as many sequences as have `tokens` together.
        images, clips: model by label: timm's name and arguments; side of the images, frames of the clips, batch size.
        compiles: whether torch.compile is tried, which takes longer than everything else on a CPU.
    """

    device: torch.device
    seconds: float = 0.1
    batch: int = 128
    stages: tuple[tuple[int, ...], ...] = ((96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7))
    attention: tuple[int, int] = (768, 12)
    lengths: tuple[int, ...] = (196, 1024, 4096, 16384, 65536)
    tokens: int = 65536
    images: dict[str, tuple[str, dict[str, Any]]] = field(
        default_factory=lambda: {
            name: (name, {})
            for name in ("s4nd_convnext_tiny", "convnext_tiny", "s4nd_vit_base_patch16_224", "vit_base_patch16_224")
        }
    )
    side: int = 224
    image_batch: int = 128
    clips: dict[str, tuple[str, dict[str, Any]]] = field(
        default_factory=lambda: {
            name: (name, {}) for name in ("s4nd_convnext3d_tiny", "convnext_i3d_tiny", "convnext_s3d_tiny", "s3d")
        }
    )
    clip: tuple[int, int, int] = (8, 16, 224)  # batch size, frames, side
    compiles: bool = True


Section = Callable[[Settings], Iterator[Row]]


def quick(device: torch.device) -> Settings:
    """Tiny sizes, to try the tool itself in seconds on a CPU."""
    convnext = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))
    vit = dict(img_size=32, patch_size=16, depth=1, embed_dim=16, num_heads=2)
    return Settings(
        device,
        seconds=0.0,
        batch=2,
        stages=((4, 8, 8), (8, 3, 3)),
        attention=(8, 2),
        lengths=(6, 16),
        tokens=16,
        images={
            "s4nd_convnext_tiny": ("s4nd_convnext_tiny", convnext | {"img_size": 32}),
            "convnext_tiny": ("convnext_tiny", convnext),
            "s4nd_vit_base_patch16_224": ("s4nd_vit_base_patch16_224", vit),
            "vit_base_patch16_224": ("vit_base_patch16_224", vit),
        },
        side=32,
        image_batch=2,
        clips={
            "s4nd_convnext3d_tiny": ("s4nd_convnext3d_tiny", convnext | {"img_size": 32, "num_frames": 4}),
            "convnext_i3d_tiny": ("convnext_i3d_tiny", convnext),
            "convnext_s3d_tiny": ("convnext_s3d_tiny", convnext),
        },
        clip=(1, 4, 32),
        compiles=False,
    )
