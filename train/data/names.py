"""Names of classes are compared by name: two lists of as many names may still be of other things."""

from collections.abc import Sequence

from s4nd.models.names import listed


def difference(ours: Sequence[str], theirs: Sequence[str], us: str, them: str) -> str:
    """How two lists of class names differ, in a few words; "" if they do not.

    Args:
        us, them: what the lists are of, such as "the data".
    """
    if list(ours) == list(theirs):
        return ""
    alone = {us: sorted({*ours} - {*theirs}), them: sorted({*theirs} - {*ours})}
    parts = [f"only in {place}: {listed(names)}" for place, names in alone.items() if names]
    if parts:
        return "; ".join(parts)
    if len(ours) != len(theirs):
        return f"{len(ours)} names in {us}, {len(theirs)} in {them}, of which some are repeated"
    first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"another order: number {first} is {ours[first]} in {us}, {theirs[first]} in {them}"


def order_by_name(wanted: Sequence[str], found: Sequence[str]) -> list[int] | None:
    """The place in `found` of each name in `wanted`; None if they are not the same names, each once or in the same order."""
    if list(wanted) == list(found):
        return list(range(len(found)))
    places = {name: i for i, name in enumerate(found)}
    if len(wanted) != len(found) or not len(found) == len(places) == len({*wanted} & {*found}):
        return None
    return [places[name] for name in wanted]
