"""timm-registered models with S4ND layers: importing this package makes `timm.create_model("s4nd_...")` work."""

if __name__ != "s4nd.models":
    raise ImportError(
        f"this package is s4nd.models, got imported as {__name__!r}: a second copy would register every model twice"
    )

from timm.models import register_notrace_module

import s4nd

from . import convnext3d, reference_weights, s4nd_convnext, s4nd_convnext3d, s4nd_iso, s4nd_seq, s4nd_vit
from .convnext3d import ConvNeXt3d
from .hold import ResampledConv2d, hold_convolutions
from .inflate import Inflation, inflate
from .isotropic import Isotropic
from .replace import replace
from .s4nd_convnext import S4NDConvNeXt
from .s4nd_convnext3d import S4NDConvNeXt3d
from .s4nd_seq import SequenceIsotropic
from .s4nd_vit import S4NDViT
from .stream import Stream, stream

register_notrace_module(s4nd.S4ND)  # a leaf of the fx graphs that timm extracts features with

__all__ = [
    "ConvNeXt3d",
    "Inflation",
    "Isotropic",
    "ResampledConv2d",
    "S4NDConvNeXt",
    "S4NDConvNeXt3d",
    "S4NDViT",
    "SequenceIsotropic",
    "Stream",
    "convnext3d",
    "hold_convolutions",
    "inflate",
    "reference_weights",
    "replace",
    "s4nd_convnext",
    "s4nd_convnext3d",
    "s4nd_iso",
    "s4nd_seq",
    "s4nd_vit",
    "stream",
]
