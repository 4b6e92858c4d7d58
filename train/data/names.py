"""Names of classes are compared by name: two lists of as many names may still be of other things."""

from collections.abc import Sequence

SHOWN = 4  # names in a message, of 1,000 classes


def difference(ours: Sequence[str], theirs: Sequence[str], us: str, them: str) -> str:
    """How two lists of class names differ, in a few words; "" if they do not.

    Args:
        us, them: what to call the owners of the lists, such as "the data".
    """
    if list(ours) == list(theirs):
        return ""
    alone = {us: sorted({*ours} - {*theirs}), them: sorted({*theirs} - {*ours})}
    parts = [
        f"only {owner} {'have' if owner.endswith('s') else 'has'} {listed(names)}"
        for owner, names in alone.items()
        if names
    ]
    if parts:
        return "; ".join(parts)
    if len(ours) != len(theirs):
        return f"{us}: {len(ours)} names, {them}: {len(theirs)}, some of them repeated"
    first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"the names are in another order: number {first} is {ours[first]} in {us}, {theirs[first]} in {them}"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
