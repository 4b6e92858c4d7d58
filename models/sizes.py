"""Sizes of any integer type as Python's integers, which are what timm compares, records and writes as JSON."""

import operator
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from timm.layers import to_2tuple


def image_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    try:
        height, width = map(operator.index, to_2tuple(img_size))
    except (TypeError, ValueError) as error:
        raise ValueError(f"img_size must be an integer or two, (height, width), got {img_size!r}") from error
    return height, width


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model, with NumPy's integers as Python's, in tuples and lists too."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value
