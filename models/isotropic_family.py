"""The isotropic models as timm has them: what it is to know of them, how it builds them."""

from typing import Any, TypeVar

from timm.models import build_model_with_cfg, list_pretrained, resolve_pretrained_cfg

from .isotropic import Isotropic
from .sizes import plain

Model = TypeVar("Model", bound=Isotropic)


def isotropic_cfg(**changes: Any) -> dict[str, Any]:
    """What timm is to know of an isotropic model, as built for CIFAR-10."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (32, 32),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),  # of CIFAR-10's training images, as is std
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "stem",
        "classifier": "head.fc",
        **changes,
    }


def create_isotropic(cls: type[Model], variant: str, pretrained: bool = False, **kwargs: Any) -> Model:
    """A registered model of this class, as timm builds it; without an img_size, for the input size of its cfg.

    Raises:
        RuntimeError: pretrained, and no weights are named; with the tags that name some.
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if pretrained and not (cfg.has_weights or cfg.state_dict) and (tags := list_pretrained(f"{variant}.*")):
        raise RuntimeError(f"No pretrained weights exist for {variant} alone, but for {', '.join(tags)}")
    kwargs.setdefault("img_size", cfg.input_size[-2:])
    features = dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter")
    return build_model_with_cfg(cls, variant, pretrained, feature_cfg=features, **plain(kwargs))
