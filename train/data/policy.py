"""The strings by which timm names a policy of augmentation, such as rand-m9-mstd0.5-inc1, read strictly.

timm passes over a part that it does not know, takes 10 for a larger magnitude, and fails on some values at an image.
"""

import re
from typing import Any

from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.transforms_factory import transforms_imagenet_train

from .generators import generators_kept

WHOLE, POSITIVE, NUMBER, SWITCH = r"\d+", r"[1-9]\d*", r"\d+(\.\d+)?", "[01]"
PARTS = {  # of each policy: the value of each part
    "rand": {"m": WHOLE, "n": POSITIVE, "p": r"0(\.\d+)?|1(\.0+)?", "mstd": NUMBER, "mmax": POSITIVE, "inc": SWITCH}
    | {"t": "weights|3a|3aw"},
    "augmix": {"m": WHOLE, "w": POSITIVE, "d": POSITIVE, "a": NUMBER, "b": SWITCH, "mstd": NUMBER},
    **{name: {"mstd": NUMBER} for name in ("original", "originalr", "v0", "v0r", "3a")},
}
ALONE: dict[str, Any] = {"color_jitter": None, "separate": True}
MOST = 10  # magnitude, if mmax says nothing else


def check_policy(text: str) -> None:
    """That timm's policy does what the string says.

    Raises:
        ValueError: it names no policy, or a part of it is unknown, repeated, or of a value that timm cannot honour.
    """
    name, *parts = text.split("-")
    if name not in PARTS:
        raise ValueError(f"auto_augment must begin with {', '.join(PARTS)}, such as rand-m9-mstd0.5-inc1, got {text!r}")
    values: dict[str, str] = {}
    for part in parts:
        known = (key for key, value in PARTS[name].items() if re.fullmatch(f"{key}({value})", part))
        key = next(known, None)
        if key is None or key in values:
            wrong = "repeats" if key else "has the unknown part"
            needed = ", ".join(f"{key}{'NAME' if key == 't' else 'N'}" for key in PARTS[name])
            raise ValueError(f"auto_augment {text!r} {wrong} {part!r}; known in {name}: {needed}")
        values[key] = part[len(key) :]
    most = int(values.get("mmax", MOST))
    if int(values.get("m", 0)) > most:
        more = " (mmaxN raises it)" if name == "rand" else ""
        raise ValueError(f"the magnitude in auto_augment {text!r} must be at most {most}{more}, got m{values['m']}")
    try:
        with generators_kept():
            _, (policy,), _ = (part.transforms for part in transforms_imagenet_train(8, auto_augment=text, **ALONE))
            repair(policy)(Image.new("RGB", (8, 8)))
            for op in operations(policy):
                apply: Any = op.aug_fn
                for level in range(most + 1):
                    drawn = op.level_fn(level, op.hparams) if op.level_fn else ()
                    apply(Image.new("RGB", (8, 8)), *drawn, **op.kwargs)
    except Exception as error:  # timm asserts, numpy refuses what it is to draw, and Pillow what it is to do
        raise ValueError(f"auto_augment {text!r} fails: {error}") from error


def operations(policy: RandAugment | AugMixAugment | AutoAugment) -> list[AugmentOp]:
    """Whatever may happen to an image."""
    return [op for pair in policy.policy for op in pair] if isinstance(policy, AutoAugment) else list(policy.ops)


def repair(policy: RandAugment | AugMixAugment | AutoAugment) -> RandAugment | AugMixAugment | AutoAugment:
    """timm's policy, in place, with a posterize that takes 0 bits: timm asks for them, and Pillow 13 refuses them."""
    for op in operations(policy):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """timm's; of 0 bits a black image, as Pillow made it."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)
