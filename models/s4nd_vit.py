"""S4ND-ViT: timm's VisionTransformer with S4ND layers in place of self-attention, no class token and no position embedding.

The mixer runs over the patches in raster order (`mixer_ndim=1`, the paper's) or over their grid (`mixer_ndim=2`).
Nguyen et al. 2022, arXiv:2210.06583, section 4. Shapes: B batch, D embed_dim, the patches' grid (h, w).
"""

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm, trunc_normal_
from timm.models import VisionTransformer, build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from s4nd import S4ND, no_weight_decay, set_base_size, set_resample

from .sizes import image_size, plain

VIT_ARGS = inspect.signature(VisionTransformer).parameters
# What makes no sense where every patch keeps its place: value in force, by argument.
FIXED = dict(class_token=False, reg_tokens=0, pos_embed="none", patch_drop_rate=0.0)


class PatchMixer(nn.Module):
    """S4ND -> GELU -> Dropout -> Linear -> GLU over patches, (B, h, w, D) -> the same.

    Args:
        dim: D.
        base_size: (h, w) in training.
        ndim: 1 for the patches in raster order, 2 for their grid.
        channels: kernels of the S4ND layer per channel.
        drop: dropout rate.
        s4nd_args: every other argument of S4ND.
    """

    def __init__(
        self,
        dim: int,
        base_size: tuple[int, int],
        ndim: int = 1,
        channels: int = 2,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **s4nd_args: Any,
    ):
        super().__init__()
        if ndim not in (1, 2):
            raise ValueError(f"mixer_ndim must be 1 (patches in raster order) or 2 (their grid), got {ndim}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.ndim = ndim
        base = base_size if ndim == 2 else base_size[0] * base_size[1]
        self.s4nd = S4ND(dim, ndim=ndim, base_size=base, channels=channels, **s4nd_args, **dd)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)
        self.proj = nn.Linear(dim * channels, 2 * dim, **dd)
        self.glu = nn.GLU(dim=-1)
        if not self.proj.weight.is_meta:
            trunc_normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The arguments after x are those of timm's attention: this layer has no use for them."""
        _, h, w, _ = check_no_mask(x, attn_mask, is_causal).shape
        if self.ndim == 1:
            y = self.s4nd(x.flatten(1, 2).transpose(1, 2))  # (B, channels D, h w)
            y = y.transpose(1, 2).unflatten(1, (h, w))
        else:
            y = self.s4nd(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.glu(self.proj(self.drop(self.act(y))))


@torch.fx.wrap  # a leaf of fx graphs, which have no branches
def check_no_mask(x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """x, if nothing is to be masked. In a trace is_causal may be a tensor, without a value."""
    if attn_mask is not None or (not torch.jit.is_tracing() and is_causal):
        raise ValueError("S4ND has no attention mask; for a causal mixer build the model with bidirectional=False")
    return x


class S4NDViT(VisionTransformer):
    """(B, in_chans, height, width) -> (B, num_classes), for any size (padded to whole patches).

    Args:
        mixer_ndim: 1 or 2, see `PatchMixer`.
        channels: kernels of each S4ND layer per channel.
        resample: resampling method at other sizes, see `s4nd.set_resample`; None for the layers' own.
        kwargs: every argument of timm's VisionTransformer but those of attention (accepted, not used), a class token, register
            tokens, a position embedding and patch dropout (refused); the others go to every S4ND layer.
    """

    def __init__(
        self, mixer_ndim: int = 1, channels: int = 2, resample: str | Sequence[str] | None = None, **kwargs: Any
    ):
        timm_args: dict[str, Any] = {name: kwargs.pop(name) for name in list(kwargs) if name in VIT_ARGS}
        for name, value in FIXED.items():
            if timm_args.setdefault(name, value) != value:
                got = timm_args[name]
                raise ValueError(f"the patches of an S4ND-ViT keep their places: {name} must be {value!r}, got {got!r}")
        own: dict[str, Any] = {
            "dynamic_img_size": True,
            "dynamic_img_pad": True,
            "global_pool": "avg",
            "fc_norm": False,
        }
        timm_args = own | timm_args
        super().__init__(**timm_args, attn_layer=nn.Identity)
        blocks: Iterable[Any] = self.blocks
        for block in blocks:
            block.attn = PatchMixer(
                self.embed_dim,
                self._grid(),
                ndim=mixer_ndim,
                channels=channels,
                drop=timm_args.get("proj_drop_rate", 0.0),
                device=timm_args.get("device"),
                dtype=timm_args.get("dtype"),
                **kwargs,
            )
        if resample is not None:
            set_resample(self, resample)

    def _grid(self) -> tuple[int, int]:
        """The patches of an image of the trained size, of which padding makes the last ones whole."""
        return self.patch_embed.dynamic_feat_size(self.patch_embed.img_size)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """From now on the model counts as trained at img_size; there it computes what it did, but for a bandlimit."""
        img_size = None if img_size is None else image_size(img_size)
        super().set_input_size(img_size, **plain({"patch_size": patch_size}))
        h, w = self._grid()
        blocks: Iterable[Any] = self.blocks
        for block in blocks:
            set_base_size(block.attn, (h, w) if block.attn.ndim == 2 else h * w, rescale=True)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay, for timm's optimizer factory."""
        return super().no_weight_decay() | no_weight_decay(self)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """The patches (B, h, w, D): they have places, and need no embedding of them."""
        if not self.dynamic_img_size:  # then x is (B, h w, D)
            h, w = self._grid()
            x = x.unflatten(1, (h, w))
        return self.pos_drop(x)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, in_chans, height, width) -> (B, h w, D), normalised."""
        x = self.norm_pre(self._pos_embed(self.patch_embed(check_no_mask(x, attn_mask, is_causal))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.norm(checkpoint_seq(self.blocks, x)).flatten(1, 2)
        return self.norm(self.blocks(x)).flatten(1, 2)

    def forward_intermediates(self, x: Tensor, *args: Any, output_fmt: str = "NCHW", **kwargs: Any) -> Any:
        """As timm's; the final features are (B, h w, D)."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        found: Any = super().forward_intermediates(x, *args, **kwargs, output_fmt="NLC")  # type: ignore[misc]  # args end before

        def formatted(y: Tensor) -> Tensor:  # (B, h, w, D)
            return y.flatten(1, 2) if output_fmt == "NLC" else y.permute(0, 3, 1, 2).contiguous()

        if isinstance(found, dict):
            found["image_intermediates"] = [formatted(y) for y in found["image_intermediates"]]
            if "image_features" in found:
                found["image_features"] = found["image_features"].flatten(1, 2)
            return found
        if isinstance(found, tuple):
            return found[0].flatten(1, 2), [formatted(y) for y in found[1]]
        return [formatted(y) for y in found]


def _cfg(url: str = "", **kwargs: Any) -> dict:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "s4nd_vit_tiny_patch16_224": _cfg(),
        "s4nd_vit_small_patch16_224": _cfg(),
        "s4nd_vit_base_patch16_224": _cfg(),
    }
)


def _create_vit(variant: str, pretrained: bool = False, **kwargs: Any) -> S4NDViT:
    # S4-LegS, dt between 0.001 and 0.1 patches, stochastic depth up to 0.1, norms as torch's: the paper's for ImageNet.
    paper = dict(kernel="s4", init="legs", dt_min=0.001, dt_max=0.1, drop_path_rate=0.1)
    args = dict(paper, patch_size=16, depth=12, norm_layer=partial(LayerNorm, eps=1e-5))
    feature_cfg = dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter")
    return build_model_with_cfg(S4NDViT, variant, pretrained, feature_cfg=feature_cfg, **plain(args | kwargs))


@register_model
def s4nd_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> S4NDViT:
    """12 x 192."""
    return _create_vit("s4nd_vit_tiny_patch16_224", pretrained, **dict(dict(embed_dim=192, num_heads=3), **kwargs))


@register_model
def s4nd_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> S4NDViT:
    """12 x 384."""
    return _create_vit("s4nd_vit_small_patch16_224", pretrained, **dict(dict(embed_dim=384, num_heads=6), **kwargs))


@register_model
def s4nd_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> S4NDViT:
    """12 x 768: the paper's S4ND-ViT-B, 88,786,408 parameters."""
    return _create_vit("s4nd_vit_base_patch16_224", pretrained, **dict(dict(embed_dim=768, num_heads=12), **kwargs))
