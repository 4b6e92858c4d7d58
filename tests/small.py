"""Layers and models that are built and run in milliseconds, and a fresh one with the present numbers of another."""

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

import s4nd.models  # noqa: F401  registers S4ND's models with timm
from s4nd import S4ND

F64 = torch.float64

# Sizes of images or clips; the first is the trained one, the others are not.
SIZES = {
    "s4 layer": [(6, 6), (5, 8), (9, 3)],
    "s4d layer": [(6, 6), (5, 8), (9, 3)],
    "causal s4 layer": [(6,), (5,), (9,)],
    "causal s4d layer": [(6,), (5,), (9,)],
    "s4nd_iso_tiny": [(8, 8), (6, 9), (13, 8)],
    "s4nd_convnext_micro": [(32, 32), (32, 40), (48, 33)],
    "s4nd_convnext_tiny": [(32, 32), (32, 40), (48, 33)],
    "s4nd_convnext_tiny, S4ND stem": [(32, 32), (32, 40), (48, 33)],
    "s4nd_vit_tiny_patch16_224": [(32, 32), (24, 48), (40, 24)],
    "s4nd_convnext3d_micro": [(4, 32, 32), (6, 32, 40), (4, 48, 32)],
}
STAGES = dict(
    depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), ls_init_value=1.0, drop_path_rate=0.0, num_classes=5, d_state=4
)
ARGS = {
    "s4 layer": dict(kernel="s4", d_state=8, rank=2, base_size=6),
    "s4d layer": dict(kernel="s4d", d_state=8, rank=2, base_size=6),
    "causal s4 layer": dict(ndim=1, kernel="s4", d_state=8, base_size=6, bidirectional=False),
    "causal s4d layer": dict(ndim=1, kernel="s4d", d_state=8, base_size=6, bidirectional=False),
    "s4nd_iso_tiny": dict(img_size=8, embed_dim=8, depth=2, d_state=4, num_classes=5),
    # A dense stem with a window, pooled downsampling.
    "s4nd_convnext_micro": dict(STAGES, img_size=32, kernel="s4d", init="lin"),
    "s4nd_convnext_tiny": dict(STAGES, img_size=32),
    "s4nd_convnext_tiny, S4ND stem": dict(STAGES, img_size=32, stem="s4nd", stem_channels=4),
    # One axis: the patches in raster order.
    "s4nd_vit_tiny_patch16_224": dict(
        img_size=32,
        patch_size=8,
        embed_dim=8,
        depth=2,
        num_heads=2,
        drop_path_rate=0.0,
        num_classes=5,
        d_state=4,
        dt_min=0.1,
        dt_max=1.0,
    ),
    "s4nd_convnext3d_micro": dict(STAGES, img_size=32, num_frames=4, kernel="s4d"),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = F64, **changes) -> nn.Module:
    """The layer or model of this name, in evaluation; drawn with `seed`."""
    args = {**ARGS[name], **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = S4ND(4, **args) if name.endswith("layer") else timm.create_model(name.split(",")[0], **args)
    return model.to(dtype).eval()


def images(name: str, number: int = 0, batch: int = 2, dtype: torch.dtype = F64) -> Tensor:
    channels = 4 if name.endswith("layer") else 3
    shape = batch, channels, *SIZES[name][number]
    return torch.randn(shape, generator=torch.Generator().manual_seed(number), dtype=dtype)


def layers(model: nn.Module) -> dict[str, S4ND]:
    return {name: module for name, module in model.named_modules() if isinstance(module, S4ND)}


def fresh(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` returns, with the present numbers and settings of `model`; nothing was computed with it yet."""
    new = build()
    for name, p in new.named_parameters():
        path, _, last = name.rpartition(".")
        p.data = present(model.get_submodule(path), last).detach().clone()
    for name, layer in layers(new).items():
        source = model.get_submodule(name)
        for setting in ("base_size", "l_max", "bandlimit", "align", "algorithm", "pool"):
            setattr(layer, setting, getattr(source, setting))
        for kernel, theirs in zip(layer.kernels, source.kernels, strict=True):
            if hasattr(theirs, "disc"):
                kernel.disc = theirs.disc
    return new


def present(module: nn.Module, name: str) -> Tensor:
    """The number that a parameter of this name has now. Pruning and the old weight norm set it when the module runs."""
    if hasattr(module, f"{name}_mask"):
        return getattr(module, f"{name}_orig") * getattr(module, f"{name}_mask")
    if hasattr(module, f"{name}_g"):
        return torch._weight_norm(getattr(module, f"{name}_v"), getattr(module, f"{name}_g"), 0)
    return getattr(module, name)


def assert_close(actual: Tensor, expected: Tensor, scale: float | None = None) -> None:
    """To `scale` of the largest, by default 1e-12 in float64, 1e-6 in float32, 8 roundings in half precision."""
    if scale is None:
        scale = {F64: 1e-12, torch.float32: 1e-6}.get(expected.dtype) or 8 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.detach().abs().max().item())
