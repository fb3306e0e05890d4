"""The frames on screen at a time and after it, as embedding sees them. Runs inside a decoding process.

Times count as in `FrameIndex`. MP4/MOV and Matroska/WebM are entered at a key frame without reading the whole
file; other files are indexed first. A frame after a seek counts only if it follows its key frame and is
whole; otherwise decoding starts earlier.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from vmr_ray.video.decode.clock import Clock
from vmr_ray.video.decode.frame_index import OPTIONS, FrameIndex, clock_zero, read_index

_TOLERANCE = 1e-3  # seconds; clients send milliseconds, and frames begin between them
_STEPS_BACK = (0.0, 1.0, 5.0, 30.0)  # seconds before the time that is sought, until a key frame is met
_STILL = 0.04  # seconds; the length of a last frame whose file does not declare it
_REORDERED = 64  # packets; no codec presents a frame later than this after its packet


class EndedError(Exception):
    """The video ends before the span that is asked for; the message says when."""


class FarError(Exception):
    """To reach a frame, more others have to be decoded than is allowed."""


class _Budget:
    """Counts the frames that are decoded; None: without a limit."""

    def __init__(self, limit: int | None):
        self._left = limit

    def spend(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise FarError


@dataclass(frozen=True)
class ShownFrame:
    """A frame and the seconds `[start, end)` for which it is on screen.

    `aspect` is a pixel's width divided by its height.
    """

    start: float
    end: float
    picture: av.VideoFrame
    aspect: float


def frame_on_screen(path: str, second: float, max_decoded: int | None = None) -> ShownFrame:
    """The frame on screen at `second`: the first one before the video begins, the last one after its end.

    Raises:
        FarError: more than `max_decoded` frames would have to be decoded.
        ValueError: no frame can be decoded.
        av.FFmpegError: not a readable container.
    """
    for frame in frames_from(path, second, max_decoded):
        return frame
    raise ValueError("no frame of it can be decoded")


def frames_of_span(path: str, start: float, end: float) -> Iterator[ShownFrame]:
    """The frames on screen in `[start, end)`: the one that is there at `start`, and those that follow.

    Raises:
        EndedError: the video ends before `start`.
        ValueError: no frame can be decoded.
        av.FFmpegError: not a readable container.
    """
    frames = frames_from(path, start)
    first = next(frames, None)
    if first is None:
        raise ValueError("no frame of it can be decoded")
    if first.end <= start:
        raise EndedError(f"the video ends at {first.end:.2f} s, before the clip's start at {start:g} s")
    yield first
    yield from itertools.takewhile(lambda frame: frame.start < end - _TOLERANCE, frames)


def frames_from(path: str, second: float, max_decoded: int | None = None) -> Iterator[ShownFrame]:
    """All frames from the one on screen at `second` on, in presentation order.

    Raises:
        FarError: it would decode more than `max_decoded` frames in all.
    """
    budget = _Budget(max_decoded)
    path = str(Path(path).absolute())
    with av.open(path, options=OPTIONS) as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("it has no video stream that can be decoded")
        base = float(stream.time_base or 1)
        rate = float(stream.average_rate or 0)
        aspect = float(stream.sample_aspect_ratio or 1)
        seekable = not {"mov", "matroska"}.isdisjoint(container.format.name.split(","))
        zero = _zero(container, stream, base) if seekable else 0.0
    if seekable:
        stamp = round((zero + max(second, 0.0) + _TOLERANCE) / base)
        steps = [round(step / base) for step in _STEPS_BACK]
        pictures = _first_that_works(path, stamp, [(_at_time(stamp - step), None) for step in steps], budget)
    else:
        index = read_index(path)
        zero = index.zero
        pictures = _indexed(index, second, budget)
    shown: av.VideoFrame | None = None
    for picture in pictures:
        if shown is not None:
            yield ShownFrame(shown.pts * base - zero, picture.pts * base - zero, shown, aspect)
        shown = picture
    if shown is not None:
        start = shown.pts * base - zero
        length = shown.duration * base if shown.duration else 1 / rate if rate else _STILL
        yield ShownFrame(start, start + length, shown, aspect)


def clock_of(path: str) -> tuple[float, bool]:
    """The second of the container's clock from which times count, and whether that clock jumps."""
    with av.open(str(Path(path).absolute()), options=OPTIONS) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video stream that can be decoded")
        if not {"mov", "matroska"}.isdisjoint(container.format.name.split(",")):
            return _zero(container, stream, float(stream.time_base or 1)), False
    index = read_index(path)
    return index.zero, bool(index.offsets.any())


def shown_first(path: str) -> bool:
    """Whether players, which show a file's first video stream, show the one that is decoded here."""
    with av.open(str(Path(path).absolute()), options=OPTIONS) as container:
        best = container.streams.best("video")
        pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        return best is not None and pictures[:1] == [best]


_Entry = Callable[[av.container.InputContainer, av.VideoStream], Clock]


def _zero(container: av.container.InputContainer, stream: av.VideoStream, base: float) -> float:
    """`FrameIndex.zero` of a file whose first packets are enough to know it."""
    stamps: list[int] = []
    first_key: int | None = None
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None or not packet.size:
                continue
            if first_key is None and packet.is_keyframe:
                first_key = stamp
            if first_key is not None and not packet.is_discard and stamp >= first_key:
                stamps.append(stamp)
            # No packet that follows is presented before it is decoded.
            known = packet.dts is not None and stamps and packet.dts >= min(stamps)
            if known or len(stamps) > _REORDERED:
                break
    if not stamps:
        raise ValueError("its video stream holds no frame")
    return clock_zero((container.start_time or 0) / av.time_base, min(stamps) * base)


def _at_time(stamp: int) -> _Entry:
    def enter(container: av.container.InputContainer, stream: av.VideoStream) -> Clock:
        container.seek(stamp, stream=stream)
        return Clock(container, stream)

    return enter


def _at_position(position: int, offset: int) -> _Entry:
    def enter(container: av.container.InputContainer, stream: av.VideoStream) -> Clock:
        container.seek(position, unsupported_byte_offset=True)
        return Clock(container, stream, offset)

    return enter


def _indexed(index: FrameIndex, second: float, budget: _Budget) -> Iterator[av.VideoFrame]:
    """The frames of a file that cannot be entered by time. Transport and program streams have a key frame's
    place in the file."""
    number = max(0, int(np.searchsorted(index.starts, second + _TOLERANCE, side="right")) - 1)
    stamp = int(index.pts[number])
    before = index.keys[: np.searchsorted(index.keys, number, side="right")]
    entries: list[tuple[_Entry, int | None]] = []
    if index.timed and len(before) > 1 and (index.positions[before] >= 0).all():
        # One key frame earlier: the first packets after such a seek can have the times of their neighbours.
        key, entry = int(before[-1]), int(before[-2])
        enter = _at_position(int(index.positions[entry]), int(index.offsets[entry]))
        entries.append((enter, int(index.pts[key])))
    return _first_that_works(index.path, stamp, entries, budget, index)


def _first_that_works(
    path: str,
    stamp: int,
    entries: list[tuple[_Entry, int | None]],
    budget: _Budget,
    index: FrameIndex | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames from the one on screen at `stamp` on, by the first of `entries` that leads to it, else from the
    file's beginning. An entry has the timestamp of the key frame that has to follow, if it is known."""
    for entry, key in [*entries, (None, None)]:
        frames = _attempt(path, stamp, entry, key, budget, index)
        if (first := next(frames, None)) is not None:
            yield first
            yield from frames
            return


def _attempt(
    path: str,
    stamp: int,
    entry: _Entry | None,
    key: int | None,
    budget: _Budget,
    index: FrameIndex | None,
) -> Iterator[av.VideoFrame]:
    """Frames from the one on screen at `stamp` on; none if that one cannot be trusted after a seek."""
    with av.open(path, options=OPTIONS) as container:
        stream = container.streams.best("video")
        assert stream is not None
        stream.thread_type = "NONE"
        try:
            clock = entry(container, stream) if entry else Clock(container, stream)
        except av.FFmpegError:
            return
        frames = _decoded(
            container, stream, clock, key, budget, None if index is None or index.timed else index
        )
        shown = ahead = None
        for ahead in frames:
            if ahead.pts > stamp:
                break
            shown, ahead = ahead, None
        if entry is not None and (shown is None or shown.is_corrupt):
            return
        yield from (frame for frame in (shown, ahead) if frame is not None)
        yield from frames


def _decoded(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    clock: Clock,
    key: int | None,
    budget: _Budget,
    untimed: FrameIndex | None,
) -> Iterator[av.VideoFrame]:
    """Decoded frames from the key frame of timestamp `key` on, or from the first key frame.

    The frames of an untimed container get the timestamps of its index, in order.
    """
    stamps = iter(() if untimed is None else untimed.pts.tolist())
    met = False
    for packet in clock.packets(container, stream):
        if not met and packet.is_keyframe and packet.pts is not None:
            met = key is None or packet.pts == key
            key = packet.pts if met else key
        with suppress(av.FFmpegError):
            for frame in packet.decode():
                budget.spend()
                if untimed is not None:
                    frame.pts = next(stamps, None)
                if frame.pts is not None and (untimed is not None or (met and frame.pts >= (key or 0))):
                    yield frame
