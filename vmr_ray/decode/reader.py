"""Index a video and read chosen frames of it. Runs inside the decoder's child process.

decord reads the frames of ordinary files. PyAV indexes every file first, since decord has no way
to tell a frame's true timestamp, and reads what decord would get wrong:

* anything but MP4/MOV and Matroska/WebM, where a seek need not land on a key frame;
* open GOPs and edit lists, whose frames decord numbers wrongly;
* dense samplings, key frames and very large files, where decord is slower or reads too far ahead;
* damaged files: decord repeats or renumbers frames and only a line on stderr tells.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from vmr_ray.decode.sampling import Plan, Sampling

Frames = NDArray[np.uint8]

# decord queues up to 10,000 packets ahead of its decoder.
_READ_AHEAD_PACKETS = 10_000
_READ_AHEAD_BYTES = 256 * 2**20
# A frame may stay on screen for lost ones for this long (s); a longer hole ends the video.
_FREEZE = 1.0
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
        starts, ends: float64 [N], the same in seconds, and each frame's end (its start if unknown).
        keys: int64 [K], frame numbers of the key frames, increasing.
        seekable: a seek lands on a key frame.
        timed: frames carry presentation timestamps; AVI only tells when they are decoded.
        closed: no frame before a key frame in presentation order follows it in the file.
        discards: the container hides some frames (an edit list).
        partial: the file holds less than it declares.
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
    partial: bool


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
    discards, partial, total, delay, last = 0, False, 0, 0, 0.0
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
                partial |= packet.is_corrupt
                if first_key is None and packet.is_keyframe:
                    first_key = stamp
                if packet.is_discard:
                    discards += 1
                elif first_key is not None:
                    stamps.append(stamp)
                    durations.append(packet.duration if timed and packet.duration else 0)
                    keys.append(packet.is_keyframe)
        except av.FFmpegError:
            partial = True
        base = float(stream.time_base)
        # AVI counts ticks, not frames.
        partial |= timed and total < stream.frames
        partial |= (container.duration or 0) / av.time_base > last + 1.0
    if first_key is None or not stamps:
        raise ValueError("its video stream holds no frame")
    pts, key = np.frombuffer(stamps, np.int64), np.frombuffer(keys, np.int8) > 0
    order = np.argsort(pts, kind="stable")
    order = order[pts[order] >= first_key]
    starts = np.asarray(pts[order] * base, np.float64)
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
        partial=partial,
    )


def read_frames(
    index: Index, sampling: Sampling, plan: Plan, width: int, height: int, chunk: int, threads: int
) -> Iterator[tuple[Frames, bool]]:
    """Decode the frames of `plan` in order, `chunk` at a time.

    Yields:
        uint8 [n, height, width, 3] RGB, upright, and whether some of it is known to be damaged.
        The frames end early at the first one that cannot be read.
    """
    done = 0
    if sampling.kind != "keyframes" and _decord_fits(index, plan, chunk):
        for frames in _decord(index, plan, width, height, chunk, threads):
            yield frames, False
            done += len(frames)
    if done < len(plan.indices):
        # An edit list may hide every key frame; the plan is then the first frame.
        only_keys = sampling.kind == "keyframes" and len(index.keys) > 0
        yield from _pyav(index, plan.indices[done:], width, height, chunk, threads, only_keys)


def _decord_fits(index: Index, plan: Plan, chunk: int) -> bool:
    """Whether decord numbers this file's frames rightly, in bounded memory, without waste."""
    if not index.seekable or not index.closed or index.discards or index.partial:
        return False
    ahead = Path(index.path).stat().st_size * min(1.0, _READ_AHEAD_PACKETS / len(index.pts))
    # The reader is rewound after every chunk, which costs at most one GOP each: sparse chunks only.
    longest_gop = np.diff(np.append(index.keys, len(index.pts))).max()
    span = chunk * len(index.pts) / len(plan.indices)
    sparse = len(plan.indices) <= chunk or 4 * longest_gop <= span
    return bool(sparse and ahead <= _READ_AHEAD_BYTES)


def _decord(index: Index, plan: Plan, width: int, height: int, chunk: int, threads: int) -> Iterator[Frames]:
    """Chunks until the first doubt: decord reports a wrong frame as a line on stderr at most."""
    import decord

    def quiet() -> bool:
        return os.fstat(2).st_size == 0

    try:
        reader = decord.VideoReader(index.path, width=width, height=height, num_threads=threads)
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
        gaps = index.starts - index.starts[0]
        if len(starts) != len(gaps) or not np.allclose(starts - starts[0], gaps, rtol=1e-6, atol=2e-3):
            return
        for first in range(0, len(plan.indices), chunk):
            frames = reader.get_batch(plan.indices[first : first + chunk]).asnumpy()
            # Ends its decoding ahead, which would fill the memory while this chunk travels.
            reader.seek(0)
            if not quiet():
                return
            yield frames
    except (RuntimeError, IndexError, AssertionError, decord.DECORDError):
        return


def _pyav(
    index: Index,
    wanted: NDArray[np.int64],
    width: int,
    height: int,
    chunk: int,
    threads: int,
    only_keys: bool,
) -> Iterator[tuple[Frames, bool]]:
    """Chunks until the end or the first unreadable frame; a seek a GOP, one frame in memory."""
    frames: Frames = np.empty((min(chunk, len(wanted)), height, width, 3), np.uint8)
    filled, damaged = 0, False
    with av.open(index.path, options=_OPTIONS) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO" if threads > 1 else "NONE"
        if only_keys:
            stream.codec_context.skip_frame = "NONKEY"
        key_pts, freeze = index.pts[index.keys], _FREEZE / float(stream.time_base)
        decoded = _stamped(container.decode(stream), index, key_pts if only_keys else index.pts)
        shown = ahead = None
        for pts in index.pts[wanted].tolist():
            try:
                keys_before = int(np.searchsorted(key_pts, pts, side="right"))
                # Key frames come out late, after the next ones went in: seeking would decode them twice.
                if index.seekable and keys_before and shown is not None and not only_keys:
                    key = int(key_pts[keys_before - 1])
                    if key > (ahead or shown).pts:
                        container.seek(key, stream=stream)
                        decoded, ahead = _stamped(container.decode(stream), index, index.pts), None
                while ahead is None or ahead.pts <= pts:
                    shown = ahead or shown
                    if shown is not None and shown.pts == pts:
                        break
                    ahead = next(decoded)
            except StopIteration:
                ahead = None
            except av.FFmpegError:
                break
            if shown is None or not pts - freeze <= shown.pts <= pts:
                break
            damaged |= shown.is_corrupt or shown.pts != pts
            frames[filled] = _upright(shown, width, height)
            filled += 1
            if filled == len(frames):
                yield frames, damaged
                filled, frames = 0, np.empty_like(frames)
        else:
            if filled:
                yield frames[:filled], damaged
            return
    yield frames[:filled], True


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


def _upright(frame: av.VideoFrame, width: int, height: int) -> Frames:
    """uint8 [height, width, 3] RGB, turned as the display matrix says."""
    turns = round(frame.rotation / 90) % 4
    size = (height, width) if turns % 2 else (width, height)
    image = frame.reformat(*size, format="rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
    return np.rot90(image, turns)
