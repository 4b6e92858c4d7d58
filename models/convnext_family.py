"""The ConvNeXts over images and over clips as timm has them: their sizes, what it is to know of them, how it builds them."""

from typing import Any, TypeVar

from timm.models import ConvNeXt, build_model_with_cfg

from .sizes import plain

MICRO = dict(depths=(3, 3, 3, 3), dims=(64, 128, 256, 512))
TINY = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))

Model = TypeVar("Model", bound=ConvNeXt)


def convnext_cfg(**changes: Any) -> dict[str, Any]:
    """What timm is to know of a ConvNeXt, as built for ImageNet."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),  # of an image, or of a frame
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.0",
        "classifier": "head.fc",
        **changes,
    }


def create_convnext(model_cls: type[Model], variant: str, pretrained: bool = False, **kwargs: Any) -> Model:
    """A registered model of this class, as timm builds it."""
    features = dict(out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)), flatten_sequential=True)
    return build_model_with_cfg(model_cls, variant, pretrained, feature_cfg=features, **plain(kwargs))
