"""Names in a message: of many the first few, and how many more there are."""

from collections.abc import Mapping, Sequence


def listed(names: Sequence[str], shown: int = 4) -> str:
    """Such as "a, b, c, d, and 2 more"."""
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def counted(names: Mapping[str, Sequence[str]], shown: int = 4) -> str:
    """Such as "2 missing: a, b; 1 unknown: c", of those that are not empty; "" if all are."""
    return "; ".join(f"{len(those)} {what}: {listed(those, shown)}" for what, those in names.items() if those)
