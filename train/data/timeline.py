"""From the packets of a video to its frames: in which order and when they are shown, and where decoding can begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np

FARTHEST = 64  # places by which a frame may be shown earlier or later than it is decoded; codecs allow 16


class PacketTimes(NamedTuple):
    """What a container says of a packet, in ticks of its clock."""

    place: int  # among all packets, in the order of decoding
    pts: int | None  # when its frame is shown
    dts: int | None  # when it is decoded
    duration: int  # 0: not said
    key: bool  # decoding can begin here


@dataclass(frozen=True)
class Timeline:
    """Frames in the order in which they are shown.

    Attributes:
        ticks: (n + 1,) float64: frame i is shown from ticks[i] to ticks[i + 1].
        timed: frames are known by their presentation times; otherwise they are counted.
        names: (n,) int64: what a frame is known by: its presentation time, or its number.
        starts: (place, name) of the packets where decoding can begin, both increasing.
    """

    ticks: np.ndarray
    timed: bool
    names: np.ndarray
    starts: Sequence[tuple[int, int]]


def timeline(packets: Sequence[PacketTimes], reorders: bool) -> Timeline:
    """The frames of packets that are shown, given in the order of decoding.

    Args:
        reorders: the codec shows frames in another order than it decodes them; times in the order of decoding are then no
            presentation times, whatever the container calls them.

    Raises:
        ValueError: no packets, or they do not say when frames are shown.
    """
    keys = [i for i, packet in enumerate(packets) if packet.key]
    packets = packets[keys[0] :] if keys else packets  # what comes before a keyframe cannot be decoded
    if not packets:
        raise ValueError("it holds no frames")
    pts = [packet.pts for packet in packets]
    if not _are_presentation_times(pts, reorders):
        return Timeline(_counted(packets), False, np.arange(len(packets)), [(0, 0)])
    shown = sorted((t, packet.duration) for t, packet in zip(pts, packets, strict=True) if t >= pts[0])
    names = np.array([t for t, _ in shown], dtype=np.int64)
    last = shown[-1][1] or (names[-1] - names[-2] if len(names) > 1 else 1)
    starts = [(packets[0].place, pts[0])]
    for t, packet in zip(pts[1:], packets[1:], strict=True):
        if packet.key and t > starts[-1][1]:
            starts.append((packet.place, t))
    return Timeline(np.array([*names, names[-1] + last], dtype=np.float64), True, names, starts)


def _are_presentation_times(pts: Sequence[int | None], reorders: bool) -> TypeGuard[list[int]]:
    known = [t for t in pts if t is not None]
    if len(set(known)) < len(pts):
        return False
    moved = np.abs(np.argsort(known) - np.arange(len(known))).max()
    return moved <= FARTHEST and (moved > 0 or not reorders or len(pts) == 1)


def _counted(packets: Sequence[PacketTimes]) -> np.ndarray:
    """Ticks (n + 1,) of frames that are counted: times of decoding or, where some are missing, the sum of the durations."""
    stamps = [packet.pts if packet.dts is None else packet.dts for packet in packets]
    durations = np.array([packet.duration for packet in packets], dtype=np.float64)
    known = [t for t in stamps if t is not None]
    if len(known) == len(stamps) and (np.diff(known) > 0).all():
        last = durations[-1] or (known[-1] - known[-2] if len(known) > 1 else 1)
        return np.array([*known, known[-1] + last], dtype=np.float64)
    if not (durations > 0).all():
        raise ValueError("it does not say when its frames are shown")
    return np.append(0, durations.cumsum())
