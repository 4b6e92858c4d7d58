"""A video file as frames in the order in which they are shown, each at its time, read by PyAV (FFmpeg's own libraries).

Seeking in a file is not trusted: where an index is missing or a group of pictures is open, it ends at another frame. Instead
all packets are read in order, which costs little, and only those that are needed are decoded, from a keyframe on. A frame is
known by its presentation time, which it has from its packet. Where the container has no such times (H.264 in AVI: it only
knows the order of decoding), frames are counted from the first one.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from .timeline import PacketTimes, timeline

KEPT_BYTES = 2**26  # of packets that stay in memory between the two passes; a larger file is read twice
LISTS = ("hls", "dash", "concat", "imf")  # formats whose content stands in other files
DECODING_TIMES = ("avi", "asf")  # containers with one time a packet, that of decoding,
REORDERED = ("h264", "hevc", "vvc")  # and codecs for which FFmpeg does not work out the times of showing from it
VP8_SHOWN = 0x10  # bit of the first byte of a packet; a frame without it is a reference that nobody sees
NOT_CODED = 8  # bytes at most of a packet of MPEG-4 that holds no picture: one is left out, or was in the packet before


def require_av() -> ModuleType:
    """The module av; ImportError names the extra that installs it."""
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need PyAV: pip install "s4nd[video]"') from error
    return av


class Film:
    """The first video of a file; a context manager that closes it.

    Attributes:
        times: (n + 1,) float64 seconds, from 0: frame i of n is shown from times[i] to times[i + 1].
        pixel_aspect: width of a pixel in units of its height.

    Raises:
        av.FFmpegError, OSError, ValueError: not a video, or damaged; also while frames are read.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._open()
        try:
            self._survey()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def frames(self, indices: np.ndarray) -> Iterator:
        """The frames (av.VideoFrame) of indices (m,), which increase; for one that cannot be decoded, the one before it."""
        wanted = deque(self.line.names[indices].tolist())
        if self.line.timed:
            yield from self._from_keyframes(wanted)
        if wanted:
            yield from self._from_the_start(wanted)

    def _open(self) -> None:
        av = require_av()
        # "file:" makes a file of every name, also of "a:b.mp4"; FFmpeg lets a file name other files, but nothing on a network.
        self.container = av.open(f"file:{self.path}", metadata_errors="ignore")
        covers = av.stream.Disposition.attached_pic  # pictures that belong to sound
        stream = next((stream for stream in self.container.streams.video if not stream.disposition & covers), None)
        codec = stream and stream.codec_context
        listed = self.container.format.name in LISTS
        if listed or stream is None or codec is None:
            self.container.close()
            holds = "a list of other files" if listed else "a codec that is not known" if stream else "no video"
            raise ValueError(f"it holds {holds}")
        codec.thread_count = 1  # the workers of a loader are the threads
        self.stream, self.codec = stream, codec
        self.pixel_aspect = float(self.stream.sample_aspect_ratio or 1)

    def _survey(self) -> None:
        """Read all packets once."""
        kept, size, smallest, shown = [], 0, NOT_CODED + 1, []
        for place, packet in enumerate(self._demux()):
            size, smallest = size + packet.size, min(smallest, packet.size)
            if size <= KEPT_BYTES:
                kept.append(packet)
            if not packet.is_discard and (self.codec.name != "vp8" or bytes(packet)[0] & VP8_SHOWN):
                shown.append(PacketTimes(place, packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
        self.kept = kept if size <= KEPT_BYTES else None
        self.gaps = self.codec.name == "mpeg4" and smallest <= NOT_CODED
        if self.gaps:
            shown = [times._replace(pts=None) for times in shown]
        only_decoding = self.container.format.name in DECODING_TIMES and self.codec.name in REORDERED
        self.line = timeline(shown, reorders=bool(self.codec.has_b_frames) or only_decoding)
        self.times = (self.line.ticks - self.line.ticks[0]) * float(self.stream.time_base)

    def _demux(self) -> Iterator:
        """The packets of the video, in the order of decoding."""
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def _packets(self) -> Iterator:
        """All packets once more, for a decoder that knows nothing yet, and None, upon which it gives what it holds back."""
        if self.kept is None:
            self.container.close()
            self._open()
        else:
            self.codec.flush_buffers()
        yield from self._demux() if self.kept is None else self.kept
        yield None

    def _from_keyframes(self, wanted: deque[int]) -> Iterator:
        """The frames wanted, up to the first that is not certain; those that are given are taken from `wanted`.

        A frame is certain where decoding began at a frame that says itself that it is a keyframe, and no later one came first.
        """
        places, names = zip(*self.line.starts, strict=True)
        start, fresh = bisect_right(names, wanted[0]) - 1, True
        for place, packet in enumerate(self._packets()):
            if packet is not None and place < places[start]:
                continue
            for frame in self.codec.decode(packet):
                if frame.pts is None or frame.pts > wanted[0]:
                    return
                if (
                    fresh and frame.pts >= names[start]
                ):  # earlier ones, before it in an open group, are never wanted here
                    if frame.pts > names[start] or not frame.key_frame:
                        return
                    fresh = False
                if frame.pts == wanted[0]:
                    wanted.popleft()
                    yield frame
                    if not wanted:
                        return
            following = bisect_right(names, wanted[0]) - 1
            if places[following] > place:
                self.codec.flush_buffers()
                start, fresh = following, True

    def _from_the_start(self, wanted: deque[int]) -> Iterator:
        """The frames wanted, from a forward read of the whole file."""
        before, number, first = None, -1, None
        for packet in self._packets():
            for frame in self.codec.decode(packet):
                number += 1
                if self.gaps and frame.dts is not None:
                    first = frame.dts if number == 0 else first
                    if first is not None:
                        number = max(number, bisect_right(self.line.ticks, self.line.ticks[0] + frame.dts - first) - 1)
                name = frame.pts if self.line.timed else number
                while wanted and name is not None and name >= wanted[0]:
                    yield frame if name == wanted[0] or before is None else before
                    wanted.popleft()
                if not wanted:
                    return
                before = frame
        if before is None:
            raise ValueError("none of its frames can be decoded")
        for _ in range(len(wanted)):
            yield before
