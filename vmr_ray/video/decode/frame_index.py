"""Index the frames of a video file without decoding them. Runs inside the decoder's child process."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vmr_ray.video.decode.clock import Clock
from vmr_ray.video.decode.hdr import is_hdr

# The demuxers that may open a file, and where they may read: a container cannot send them elsewhere.
OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,ogg,asf",
}
# Codecs whose frames that are marked as "no reference" can be skipped: no other frame needs them.
_SKIPPABLE = {"h264", "mpeg2video", "mpeg4"}


@dataclass(frozen=True)
class FrameIndex:
    """All frames of a video in presentation order.

    Attributes:
        path: absolute path.
        pts: int64 [N], presentation timestamps in the stream's time base.
        starts, ends: float64 [N], seconds from the container's beginning, which is where players count
            from; an end that the file does not declare equals its start.
        keys: int64 [K], frame numbers of the key frames, increasing.
        seekable: a seek lands on a key frame.
        timed: packets carry presentation timestamps; those of AVI are known only after decoding.
        closed: no frame that is presented before a key frame follows it in the file.
        discards: the container hides some frames (an edit list).
        skippable: some frames may be left undecoded, because no other frame needs them.
        damage: what the file lacks of what it declares, in words; empty if nothing.
        zero: float, the second of the container's clock from which `starts` count.
        positions: int64 [N], where in the file the frame's packet begins, in bytes; -1 if that is unknown.
        offsets: int64 [N], what was added to the timestamps of the file, because its clock jumps.
        hdr: its pictures are made for HDR screens.
        aspect: float, a pixel's width divided by its height.
        splices: float64 [J], seconds at which the clock jumps; times continue there without a gap.
    """

    path: str
    pts: NDArray[np.int64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    keys: NDArray[np.int64]
    seekable: bool
    timed: bool
    closed: bool
    discards: bool
    skippable: bool
    damage: str
    zero: float
    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    hdr: bool
    aspect: float
    splices: NDArray[np.float64]


def read_duration(path: str) -> float:
    """The seconds that the container declares, 0 if it declares none: fast, but not reliable."""
    with av.open(str(Path(path).absolute()), options=OPTIONS) as container:
        return (container.duration or 0) / av.time_base


def read_index(path: str) -> FrameIndex:
    """Index the best video stream of a local file.

    Two kinds of frames are left out: those before the first key frame, which cannot be decoded, and those
    that an edit list hides.

    Raises:
        ValueError: no video stream, or no frame in it.
        av.FFmpegError: not a readable container.
    """
    path = str(Path(path).absolute())
    with av.open(path, options=OPTIONS) as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("it has no video stream that can be decoded")
        formats = container.format.name.split(",")
        timed = "avi" not in formats
        packets = _read_packets(container, stream, timed)
        if packets.first_key is None or not packets.stamps:
            raise ValueError("its video stream holds no frame")
        origin = (container.start_time or 0) / av.time_base
        aspect = float(stream.sample_aspect_ratio or 1)
        hdr = is_hdr(stream.codec_context.color_trc)
        damage = _damage(packets, container, stream, timed, origin)
        base = float(stream.time_base)
        skippable = timed and packets.delay > 0 and stream.codec_context.codec.canonical_name in _SKIPPABLE
    pts, is_key = np.frombuffer(packets.stamps, np.int64), np.frombuffer(packets.keys, np.int8) > 0
    order = np.argsort(pts, kind="stable")
    order = order[pts[order] >= packets.first_key]
    starts = np.asarray(pts[order] * base, np.float64)
    zero = clock_zero(origin, float(starts[0]))
    starts -= zero
    keys = np.flatnonzero(is_key[order])
    offsets = np.frombuffer(packets.offsets, np.int64)[order]
    return FrameIndex(
        path=path,
        pts=pts[order],
        starts=starts,
        ends=starts + np.frombuffer(packets.durations, np.int64)[order] * base,
        keys=keys,
        # A seek goes by decoding time, so key frames closer than the reordering delay are mixed up.
        seekable=not {"mov", "matroska"}.isdisjoint(formats)
        and bool((np.diff(pts[order][keys]) > packets.delay).all()),
        timed=timed,
        closed=bool(np.array_equal(order[keys], keys)),
        discards=packets.discards > 0,
        skippable=skippable,
        damage=damage,
        zero=zero,
        positions=np.frombuffer(packets.positions, np.int64)[order],
        offsets=offsets,
        hdr=hdr,
        aspect=aspect,
        splices=starts[1:][np.diff(offsets) != 0],
    )


def clock_zero(origin: float, first: float) -> float:
    """The second from which times count: the container's beginning, or the first frame if that is earlier.

    The container's start is rounded to microseconds, and an edit list may hide the stream's.
    """
    return origin if first - origin > 1e-5 else first


@dataclass
class _Packets:
    """What demuxing a file shows. Arrays are in the order of the file, times in the stream's time base."""

    stamps: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))  # 0: not declared
    keys: array[int] = field(default_factory=lambda: array("b"))  # 1: a key frame
    positions: array[int] = field(default_factory=lambda: array("q"))  # bytes; -1: unknown
    offsets: array[int] = field(default_factory=lambda: array("q"))
    first_key: int | None = None  # timestamp of the first key frame
    total: int = 0  # packets of the stream, hidden and undecodable ones too
    discards: int = 0  # hidden by an edit list
    corrupt: int = 0
    delay: int = 0  # longest time from decoding to presentation
    end: float = 0.0  # seconds, of the last packet of any stream
    shown_end: int = 0  # of the last frame that is not hidden
    jumps: int = 0  # of the clock
    error: str = ""  # what ended the reading early


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream, timed: bool) -> _Packets:
    packets, clock = _Packets(), Clock(container, stream)
    try:
        for packet in container.demux():
            if packet.stream_index == stream.index and packet.size:
                clock.follow(packet)
            stamp = packet.pts if timed and packet.pts is not None else packet.dts
            if stamp is None or not packet.size:
                continue
            packets.end = max(packets.end, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            packets.total += 1
            packets.delay = max(packets.delay, stamp - (stamp if packet.dts is None else packet.dts))
            packets.corrupt += packet.is_corrupt
            if packets.first_key is None and packet.is_keyframe:
                packets.first_key = stamp
            if packet.is_discard:
                packets.discards += 1
            elif packets.first_key is not None:
                packets.stamps.append(stamp)
                packets.durations.append(packet.duration if timed and packet.duration else 0)
                packets.keys.append(packet.is_keyframe)
                packets.positions.append(-1 if packet.pos is None else packet.pos)
                packets.offsets.append(clock.offset)
                packets.shown_end = max(packets.shown_end, stamp + (packet.duration or 0))
    except av.FFmpegError as error:
        packets.error = error.strerror
    packets.jumps = clock.jumps
    return packets


def _damage(
    packets: _Packets,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    timed: bool,
    origin: float,
) -> str:
    """What the file lacks of what it declares, or ""; `origin` is its beginning in seconds."""
    declared, end = (container.duration or 0) / av.time_base, packets.end - origin
    # Where a stream was spliced, the counter of its packets jumps too, and one of them is marked as corrupt.
    corrupt = packets.corrupt - packets.jumps
    if packets.error:
        return f"it cannot be read past {end:.1f} s ({packets.error})"
    # AVI counts ticks, not frames. An edit list that ends earlier hides frames from the demuxer.
    hidden = (stream.start_time or 0) + (stream.duration or 0) <= packets.shown_end
    if timed and packets.total < stream.frames and not (stream.duration and hidden):
        return f"it holds {packets.total} of the {stream.frames} frames that it declares"
    if "matroska" in container.format.name and declared > origin:
        declared -= origin  # it declares when it ends, and not how long it lasts
    if declared > end + 1.0 and not packets.jumps:
        return f"it ends at {end:.1f} s of the {declared:.1f} s that it declares"
    if corrupt > 0:
        return f"{corrupt} of its {packets.total} packets are corrupt"
    return ""
