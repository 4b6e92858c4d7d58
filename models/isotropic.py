"""The isotropic network: one grid and one width from the first layer to the last, any mixing layer in between.

    x = stem(image);  x = x + DropPath(Dropout(Mixer(LN x))), depth times;  logits = Linear(mean over the grid of LN x)

Without the mean (global_pool="") the Linear answers for each pixel: a dense head, on the image's own grid. The mixer alone
tells the members of a family apart. Nguyen et al. 2022, arXiv:2210.06583 (CIFAR-10).
Shapes: B batch, H channels (embed_dim), the grid (height, width) is the image's: nothing is subsampled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint, checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from s4nd import no_weight_decay, set_base_size, set_resample

from .sizes import image_size


class IsotropicBlock(nn.Module):
    """x + DropPath(Dropout(Mixer(LN x))), (B, H, height, width) -> the same; dropout is tied over the grid.

    Args:
        mixer: a module (B, H, height, width) -> the same shape.
        drop: dropout rate of whole channels of the mixer's output.
        drop_path: rate at which the mixer is skipped for a whole sample.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5, device=device, dtype=dtype)
        self.mixer = mixer
        self.drop = nn.Dropout2d(drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.drop(self.mixer(self.norm(x))))


@torch.fx.wrap  # a leaf of fx graphs, which have no branches
def check_images(x: Tensor, in_chans: int) -> Tensor:
    """x, if it is (B, in_chans, height, width)."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return x
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"x must be (B, {in_chans}, height, width), got {tuple(x.shape)}")
    return x


class Isotropic(nn.Module):
    """Isotropic image classifier with timm's model protocol, (B, in_chans, height, width) -> (B, num_classes).

    Or, with global_pool="", -> (B, num_classes, height, width): an answer for each pixel.

    Args:
        mixer: builds a block's mixing layer: mixer(embed_dim, base_size=BASE, drop=proj_drop_rate, **mixer_args), where BASE
            are the samples along its axes at the trained size: img_size, unless a subclass reads images otherwise.
        img_size: image size in training, one number or (height, width); forward takes any other size.
        depth: number of blocks.
        global_pool: pooling of timm's classifier head, "" for none: a 1x1 convolution then classifies each pixel.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout of whole channels, inside and after every mixer.
        drop_path_rate: stochastic depth of the last block; the rate grows linearly from 0 at the first.
        resample: resampling method of S4ND mixers at other sizes, see `s4nd.set_resample`; None for the layers' own.
        mixer_args: every other argument goes to `mixer`.
    """

    def __init__(
        self,
        mixer: Callable[..., nn.Module],
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 64,
        depth: int = 4,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        resample: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mixer_args: Any,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.img_size = image_size(img_size)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.grad_checkpointing = False

        channels, base_size = self._samples()
        rates: Any = calculate_drop_path_rates(drop_path_rate, depth)
        self.stem = nn.Conv2d(channels, embed_dim, 1, **dd)
        self.blocks = nn.Sequential(
            *(
                IsotropicBlock(
                    embed_dim,
                    mixer(embed_dim, base_size=base_size, drop=proj_drop_rate, **mixer_args, **dd),
                    drop=proj_drop_rate,
                    drop_path=rate,
                    **dd,
                )
                for rate in rates
            )
        )
        self.feature_info = [dict(num_chs=embed_dim, reduction=1, module=f"blocks.{i}") for i in range(depth)]
        self.norm: nn.Module = LayerNorm2d(embed_dim, eps=1e-5, **dd)
        self.head = ClassifierHead(
            embed_dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, use_conv=not global_pool, **dd
        )
        if resample is not None:
            set_resample(self, resample)

    def _samples(self) -> tuple[int, tuple[int, ...]]:
        """What the mixers see of an image of the trained size: channels of a sample, and samples along each of their axes."""
        return self.in_chans, self.img_size

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay, for timm's optimizer factory."""
        return no_weight_decay(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer groups for timm's layer-wise learning-rate decay."""
        return dict(stem=r"^stem", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """From now on the model counts as trained at img_size; there it computes what it did, but for a bandlimit."""
        self.img_size = image_size(img_size)
        set_base_size(self, self._samples()[1], rescale=True)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, untrained classifier (0 classes: none) and, if given, another pooling."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.head.use_conv = not global_pool  # timm's head keeps what it was built with
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def _read(self, x: Tensor) -> Tensor:
        """An image (B, in_chans, height, width) as the grid of samples that the stem takes."""
        return x

    def _embed(self, x: Tensor) -> Tensor:
        return self.stem(self._read(check_images(x, self.in_chans)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The final features and the outputs of chosen blocks.

        Args:
            x: (B, in_chans, height, width).
            indices: the last n blocks if a number, these blocks if a list, all if None.
            norm: apply the final norm to every intermediate.
            stop_early: do not run the blocks after the last chosen one.
            output_fmt: "NCHW".
            intermediates_only: leave out the final features.

        Returns:
            (B, H, height, width) final features, normalised, and a list of the same shape, one per chosen block.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.blocks), indices)
        x = self._embed(x)
        intermediates = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in take:
                intermediates.append(self.norm(x) if norm else x)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediates do not need; returns their indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, H, height, width), normalised."""
        x = self._embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.norm(checkpoint_seq(self.blocks, x))
        return self.norm(self.blocks(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, height, width) -> (B, num_classes), or (B, H) with pre_logits; without pooling the grid stays."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
