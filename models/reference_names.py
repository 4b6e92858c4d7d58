"""Names in the reference implementation's checkpoints (github.com/state-spaces/s4), and those of the models here.

Its kernels' tensors come under another name, some with another sign, and its ViT has a block for each half of ours.
"""

import re
from collections.abc import Callable, Mapping

from timm.models import ConvNeXt
from torch import Tensor, nn

from .isotropic import Isotropic
from .s4nd_vit import S4NDViT

KERNEL = re.compile(r"(?P<layer>.+)\.kernel\.(?P<axis>\d+)\.(?:kernel\.)?(?P<tensor>\w+)")
# Names of a kernel's tensors there -> here, those of its earlier versions among them; the others are alike.
TENSORS = {
    "inv_dt": "log_dt",
    "A_real": "log_A_real",
    "inv_w_real": "log_A_real",
    "log_w_real": "log_A_real",
    "w_imag": "A_imag",
    "L": "l_kernel",
}

# The beginning of a name there -> here; of the patterns that fit, the first counts.
CONVNEXT = {
    r"stem\.stem\.(?=kernel\.|D$)": "stem.0.",
    # An S4ND stem of videos is one sequence there: the layer, its pooling, a linear map, GLU and norm.
    r"stem\.stem\.2\.": "stem.1.",
    r"stem\.stem\.4\.": "stem.3.",
    r"stem\.(stem|post_stem)\.": "stem.",
    r"(stages\.\d+)\.norm_layer\.": r"\1.downsample.0.",
    r"(stages\.\d+)\.downsample\.(conv|s4conv)\.": r"\1.downsample.1.",
    r"(stages\.\d+)\.downsample\.fc\.": r"\1.downsample.2.",
    r"(stages\.\d+\.blocks\.\d+\.conv_dw)\.conv\.": r"\1.",
}
ISOTROPIC = {
    r"encoder\.1\.": "stem.",
    r"decoder\.0\.output_transform\.": "head.fc.",
    r"norm\.norm\.": "norm.",
    r"layers\.(\d+)\.norm\.norm\.": r"blocks.\1.norm.",
    r"layers\.(\d+)\.layer\.conv2d\.": r"blocks.\1.mixer.conv.",
    r"layers\.(\d+)\.layer\.(output_linear\.0|linear)\.": r"blocks.\1.mixer.proj.",
    r"layers\.(\d+)\.layer\.": r"blocks.\1.mixer.s4nd.",
}
VIT_MIXER = {r"norm\.norm\.": "norm1.", r"layer\.output_linear\.0\.": "attn.proj.", r"layer\.": "attn.s4nd."}
VIT_FFN = {r"norm\.norm\.": "norm2.", r"layer\.ff\.0\.0\.": "mlp.fc1.", r"layer\.ff\.2\.": "mlp.fc2."}


def renaming(model: nn.Module) -> Callable[[str], str]:
    """From a name there to the one here, of all but kernels.

    Raises:
        ValueError: there is no such model there.
    """
    if isinstance(model, ConvNeXt):
        return lambda key: _renamed(key, CONVNEXT)
    if isinstance(model, Isotropic):
        return lambda key: _renamed(key, ISOTROPIC)
    if isinstance(model, S4NDViT):
        return _renamed_vit
    raise ValueError(f"need a ConvNeXt, an S4ND-ViT or an isotropic network, got {type(model).__name__}")


def _renamed(key: str, rules: Mapping[str, str]) -> str:
    for pattern, ours in rules.items():
        name, count = re.subn(rf"\A{pattern}", ours, key)
        if count:
            return name
    return key


def _renamed_vit(key: str) -> str:
    """Its blocks 2i and 2i + 1 are the two halves of our block i."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if not block:
        return _renamed(key, {r"norm\.norm\.": "norm."})
    i, half = divmod(int(block[1]), 2)
    return f"blocks.{i}.{_renamed(block[2], VIT_FFN if half else VIT_MIXER)}"


def translated(name: str, value: Tensor) -> tuple[str, Tensor]:
    """A tensor that is renamed, of a kernel or not, under its last name here, and as it is meant here."""
    kernel = KERNEL.fullmatch(name)
    if not kernel:
        if ".kernels." in name:
            return "", value  # a name that only this library has, so that its C is no C~
        # The isotropic network there swaps height and width before it convolves.
        transposed = name.endswith(".mixer.conv.weight") and value.ndim == 4
        return name, value.transpose(2, 3) if transposed else value
    tensor = kernel["tensor"]
    name = f"{kernel['layer']}.kernels.{kernel['axis']}.{TENSORS.get(tensor, tensor)}"
    return name, -value if tensor == "A_imag" else value  # it holds -Im A; w_imag, its earlier form, holds Im A
