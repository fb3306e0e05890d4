"""Index a video and read chosen frames of it. Runs inside the decoder's child process.

PyAV indexes every file first: decord has no way to tell a frame's true timestamp. decord then reads
files without B-frames, where it is the faster of the two. PyAV reads

* files with B-frames: it skips those that nobody asked for and nothing depends on;
* anything but MP4/MOV and Matroska/WebM, where a seek need not land on a key frame;
* open GOPs and edit lists, whose frames decord numbers wrongly;
* dense samplings, key frames and very large files, where decord is slower or reads too far ahead;
* damaged files: decord repeats or renumbers frames and only a line on stderr tells.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vmr_ray.video.decode.sampling import Plan, Sampling

Frames = NDArray[np.uint8]
Places = NDArray[np.int64]

# decord queues up to 10,000 packets ahead of its decoder.
_READ_AHEAD_PACKETS = 10_000
_READ_AHEAD_BYTES = 256 * 2**20
# A frame may stay on screen for lost ones for this long (s); a longer hole ends the video.
_FREEZE = 1.0
# Codecs in which a frame that the stream marks as no reference is one: no other frame needs it.
_SKIPPABLE = {"h264", "mpeg2video", "mpeg4"}
# What a demuxer may be, and where it may read from: a container cannot send it elsewhere.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,ogg,asf",
}


@dataclass(frozen=True)
class Index:
    """All frames of a video in presentation order, without decoding any.

    Attributes:
        path: absolute path.
        pts: int64 [N], presentation timestamps in the stream's time base.
        starts, ends: float64 [N], the same in seconds since the container's beginning, which is where
            players count from, and each frame's end (its start if unknown).
        keys: int64 [K], frame numbers of the key frames, increasing.
        seekable: a seek lands on a key frame.
        timed: frames carry presentation timestamps; AVI only tells when they are decoded.
        closed: no frame before a key frame in presentation order follows it in the file.
        discards: the container hides some frames (an edit list).
        skippable: some frames may be left undecoded, for no other needs them.
        damage: what the file lacks of what it declares, in words; empty if nothing.
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


def read_duration(path: str) -> float:
    """Seconds that the container declares, 0 if it does not tell: cheap, and not to be relied on."""
    with av.open(str(Path(path).absolute()), options=_OPTIONS) as container:
        return (container.duration or 0) / av.time_base


def read_index(path: str) -> Index:
    """Index the best video stream of a local file.

    Frames before the first key frame cannot be decoded, and those that an edit list hides are not
    shown: both are left out.

    Raises:
        ValueError: no video stream, or no frame in it.
        av.FFmpegError: not a readable container.
    """
    path = str(Path(path).absolute())
    stamps, durations, keys = array("q"), array("q"), array("b")
    first_key: int | None = None
    discards, corrupt, total, delay, last, broken = 0, 0, 0, 0, 0.0, ""
    with av.open(path, options=_OPTIONS) as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("it has no video stream that can be decoded")
        names = container.format.name.split(",")
        timed = "avi" not in names
        try:
            for packet in container.demux():
                stamp = packet.pts if timed and packet.pts is not None else packet.dts
                if stamp is None or not packet.size:
                    continue
                last = max(last, float((stamp + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index != stream.index:
                    continue
                total += 1
                delay = max(delay, stamp - (stamp if packet.dts is None else packet.dts))
                corrupt += packet.is_corrupt
                if first_key is None and packet.is_keyframe:
                    first_key = stamp
                if packet.is_discard:
                    discards += 1
                elif first_key is not None:
                    stamps.append(stamp)
                    durations.append(packet.duration if timed and packet.duration else 0)
                    keys.append(packet.is_keyframe)
        except av.FFmpegError as error:
            broken = error.strerror
        base = float(stream.time_base)
        declared = (container.duration or 0) / av.time_base
        origin = (container.start_time or 0) / av.time_base
        skippable = timed and delay > 0 and stream.codec_context.codec.canonical_name in _SKIPPABLE
    if first_key is None or not stamps:
        raise ValueError("its video stream holds no frame")
    if broken:
        damage = f"it cannot be read past {last - origin:.1f} s ({broken})"
    elif timed and total < stream.frames:  # AVI counts ticks, not frames
        damage = f"it holds {total} of the {stream.frames} frames that it declares"
    elif declared > last - origin + 1.0:
        damage = f"it ends at {last - origin:.1f} s of the {declared:.1f} s that it declares"
    elif corrupt:
        damage = f"{corrupt} of its {total} packets are corrupt"
    else:
        damage = ""
    pts, key = np.frombuffer(stamps, np.int64), np.frombuffer(keys, np.int8) > 0
    order = np.argsort(pts, kind="stable")
    order = order[pts[order] >= first_key]
    starts = np.asarray(pts[order] * base, np.float64)
    # The container's start is rounded to microseconds, and an edit list may hide the stream's.
    starts -= origin if starts[0] - origin > 1e-5 else starts[0]
    key_indices = np.flatnonzero(key[order])
    return Index(
        path=path,
        pts=pts[order],
        starts=starts,
        ends=starts + np.frombuffer(durations, np.int64)[order] * base,
        keys=key_indices,
        # A seek goes by decoding time: key frames closer than the reordering delay are mixed up.
        seekable=not {"mov", "matroska"}.isdisjoint(names)
        and bool((np.diff(pts[order][key_indices]) > delay).all()),
        timed=timed,
        closed=bool(np.array_equal(order[key_indices], key_indices)),
        discards=bool(discards),
        skippable=skippable,
        damage=damage,
    )


def chunk_range(index: Index, plan: Plan, chunk: int, part: int, parts: int) -> tuple[int, int]:
    """The chunks `[first, stop)` of `plan` that are the `part`-th of `parts` equal ones.

    Only a whole file that can be entered at any key frame is divided; of another one part 0 has all.
    """
    chunks = -(-len(plan.indices) // chunk)
    if not index.seekable or index.damage:
        return (0, chunks) if part == 0 else (chunks, chunks)
    return part * chunks // parts, (part + 1) * chunks // parts


def read_frames(
    index: Index,
    sampling: Sampling,
    plan: Plan,
    width: int,
    height: int,
    chunk: int,
    threads: int,
    chunks: tuple[int, int],
) -> Iterator[tuple[Places, Frames, str]]:
    """Decode the frames of `plan`, `chunk` at a time: those of the chunks `[first, stop)`.

    Yields:
        for each chunk: int64 [n], the places in `plan` of the frames that can be read; the frames, uint8
        [n, height, width, 3] RGB, upright; and what is known to be damaged in the chunk, in words.
    """
    places = np.arange(chunks[0] * chunk, min(chunks[1] * chunk, len(plan.indices)))
    # An edit list may hide every key frame; the plan is then the first frame.
    only_keys = sampling.kind == "keyframes" and len(index.keys) > 0
    if not len(places):
        return
    if only_keys or not _decord_fits(index, plan, chunk):
        yield from _pyav(index, plan, places, width, height, chunk, threads, only_keys)
        return
    decord = _Decord(index, width, height, threads)
    for at in range(0, len(places), chunk):
        part = places[at : at + chunk]
        if (frames := decord.read(plan.indices[part])) is not None:
            yield part, frames, ""
        else:
            yield from _pyav(index, plan, part, width, height, chunk, threads, only_keys)


def _decord_fits(index: Index, plan: Plan, chunk: int) -> bool:
    """Whether decord numbers this file's frames rightly, in bounded memory, without waste."""
    if index.skippable or not index.seekable or not index.closed or index.discards or index.damage:
        return False
    ahead = Path(index.path).stat().st_size * min(1.0, _READ_AHEAD_PACKETS / len(index.pts))
    # The reader is rewound after every chunk, which costs at most one GOP each: sparse chunks only.
    longest_gop = np.diff(np.append(index.keys, len(index.pts))).max()
    span = chunk * len(index.pts) / len(plan.indices)
    sparse = len(plan.indices) <= chunk or 4 * longest_gop <= span
    return bool(sparse and ahead <= _READ_AHEAD_BYTES)


class _Decord:
    """Reads by decord what it reads beyond doubt: it reports a wrong frame as a line on stderr at most."""

    def __init__(self, index: Index, width: int, height: int, threads: int):
        self._index = index
        self._options = {"width": width, "height": height, "num_threads": threads}
        self._reader: Any = None
        self._fits = True

    def read(self, indices: NDArray[np.int64]) -> Frames | None:
        """uint8 [n, height, width, 3], or None in doubt."""
        import decord

        try:
            if self._reader is None and self._fits:
                self._reader = decord.VideoReader(self._index.path, **self._options)
                self._fits = self._same_times()
            if not self._fits:
                return None
            frames = self._reader.get_batch(indices).asnumpy()
            # Ends its decoding ahead, which would fill the memory while this chunk travels.
            self._reader.seek(0)
            if os.fstat(2).st_size == 0:
                return frames
        except (RuntimeError, IndexError, AssertionError, decord.DECORDError):
            pass
        self._reader = None
        os.ftruncate(2, 0)
        return None

    def _same_times(self) -> bool:
        count = len(self._reader)
        starts = self._reader.get_frame_timestamp(range(count))[:, 0].astype(np.float64)
        gaps = self._index.starts - self._index.starts[0]
        return count == len(gaps) and np.allclose(starts - starts[0], gaps, rtol=1e-6, atol=2e-3)


def _pyav(
    index: Index,
    plan: Plan,
    places: Places,
    width: int,
    height: int,
    chunk: int,
    threads: int,
    only_keys: bool,
) -> Iterator[tuple[Places, Frames, str]]:
    """A seek a GOP, one frame in memory; what cannot be read is left out."""
    stamps = index.pts[plan.indices[places]].tolist()
    with av.open(index.path, options=_OPTIONS) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO" if threads > 1 else "NONE"
        if only_keys:
            stream.codec_context.skip_frame = "NONKEY"
        # Frame threads decode several packets at once: what one may skip, another may be at.
        needed = set(stamps) if index.skippable and threads == 1 and not only_keys else None
        key_pts, freeze = index.pts[index.keys], _FREEZE / float(stream.time_base)
        decoded = _stamped(_decode(container, stream, needed), index, key_pts if only_keys else index.pts)
        scaler = VideoReformatter()
        shown: Any = None
        ahead: Any = None
        sought = ended = False
        for first in range(0, len(places), chunk):
            part = places[first : first + chunk]
            frames: Frames = np.empty((len(part), height, width, 3), np.uint8)
            read: list[int] = []
            damage = ""
            for place, pts in zip(part, stamps[first : first + chunk], strict=True):
                keys_before = int(np.searchsorted(key_pts, pts, side="right"))
                # Key frames come out late, after the next ones went in: seeking would decode them twice.
                if index.seekable and keys_before and not (only_keys and shown):
                    key = int(key_pts[keys_before - 1])
                    if key > ((ahead or shown).pts if shown else index.pts[0]):
                        container.seek(key, stream=stream)
                        decoded = _stamped(_decode(container, stream, needed), index, index.pts)
                        sought, ahead = True, None
                while not ended and (ahead is None or ahead.pts <= pts):
                    shown = ahead or shown
                    if shown is not None and shown.pts == pts:
                        break
                    ahead = next(decoded, None)
                    ended = ahead is None
                found = shown is not None and pts - freeze <= shown.pts <= pts
                whole = found and shown.pts == pts and not shown.is_corrupt
                if sought and not whole:
                    # Some streams do not start afresh at every key frame (periodic intra refresh).
                    rest, index = places[first:], replace(index, seekable=False)
                    yield from _pyav(index, plan, rest, width, height, chunk, threads, only_keys)
                    return
                if not whole:
                    damage = damage or f"the frame at {plan.times[place]:.1f} s is damaged or missing"
                if found:
                    frames[len(read)] = _upright(scaler, shown, width, height)
                    read.append(place)
            yield np.array(read, np.int64), frames[: len(read)], damage


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, needed: set[int] | None
) -> Iterator[av.VideoFrame]:
    """Frames in presentation order; with `needed` (timestamps) others on which none depends are skipped.

    A damaged packet costs its frames, and the end of what can be read ends the frames.
    """
    context, mode = stream.codec_context, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        if needed is not None:
            wanted_mode = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
            if wanted_mode != mode:
                context.skip_frame = mode = wanted_mode
        with suppress(av.FFmpegError):
            yield from packet.decode()


def _stamped(
    decoded: Iterator[av.VideoFrame], index: Index, stamps: NDArray[np.int64]
) -> Iterator[av.VideoFrame]:
    """Frames with a timestamp, which in an untimed container is that of their place in the order."""
    if index.timed:
        yield from (frame for frame in decoded if frame.pts is not None)
    else:
        for frame, stamp in zip(decoded, stamps.tolist(), strict=False):
            frame.pts = stamp
            yield frame


def _upright(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> Frames:
    """uint8 [height, width, 3] RGB, turned as the display matrix says."""
    turns = round(frame.rotation / 90) % 4
    size = (height, width) if turns % 2 else (width, height)
    scaled = scaler.reformat(frame, *size, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    return np.rot90(scaled.to_ndarray(), turns)
