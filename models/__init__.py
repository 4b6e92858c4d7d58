"""timm-registered models with S4ND layers: importing this package makes `timm.create_model("s4nd_...")` work."""

if __name__ != "s4nd.models":
    raise ImportError(
        f"this package is s4nd.models, got imported as {__name__!r}: a second copy would register every model twice"
    )

from timm.models import register_notrace_module

from s4nd import S4ND

from . import convnext3d, s4nd_convnext, s4nd_convnext3d, s4nd_iso, s4nd_seq, s4nd_vit
from .hold import ResampledConv2d, hold_convolutions
from .inflate import Inflation, inflate
from .replace import replace
from .stream import Stream, stream

register_notrace_module(S4ND)  # a leaf of the fx graphs that timm extracts features with

__all__ = [
    "Inflation",
    "ResampledConv2d",
    "Stream",
    "convnext3d",
    "hold_convolutions",
    "inflate",
    "replace",
    "s4nd_convnext",
    "s4nd_convnext3d",
    "s4nd_iso",
    "s4nd_seq",
    "s4nd_vit",
    "stream",
]
