"""Read frames with PyAV: any file, damaged ones too. Runs inside the decoder's child process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from vmr_ray.schema import Scaling
from vmr_ray.video.decode.clock import Clock
from vmr_ray.video.decode.frame_index import OPTIONS, FrameIndex
from vmr_ray.video.decode.hdr import as_sdr
from vmr_ray.video.decode.sampling import SamplePlan
from vmr_ray.video.decode.scaling import scale_frame

if TYPE_CHECKING:
    from vmr_ray.video.decode.picture import KeptPictures

# Seconds for which a frame may stay on screen in place of lost ones; a longer hole has no frames.
_FREEZE = 1.0


class _BadSeekError(Exception):
    """The frame after a seek is missing or damaged."""


def read_with_pyav(
    index: FrameIndex,
    plan: SamplePlan,
    positions: NDArray[np.int64],
    width: int,
    height: int,
    chunk: int,
    threads: int,
    only_keys: bool,
    scaling: Scaling,
    pictures: KeptPictures | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], str]]:
    """The frames at `positions` of the plan; arguments and results as for `reader.read_frames`.

    Every needed GOP is sought, and one frame at a time is in memory. With `only_keys` all other frames are
    skipped.
    """
    stamps = index.pts[plan.indices[positions]].tolist()
    scaler = VideoReformatter()
    with av.open(index.path, options=OPTIONS) as container:
        player = _Player(container, index, stamps, threads, only_keys)
        for first in range(0, len(positions), chunk):
            part = positions[first : first + chunk]
            frames: NDArray[np.uint8] = np.empty((len(part), height, width, 3), np.uint8)
            read: list[int] = []
            damage = ""
            try:
                for position, stamp in zip(part, stamps[first : first + chunk], strict=True):
                    frame, whole = player.frame_at(stamp)
                    if not whole:
                        damage = damage or f"the frame at {plan.times[position]:.1f} s is damaged or missing"
                    if frame is not None:
                        if pictures is not None:
                            pictures.add(float(plan.times[position]), frame)
                        frames[len(read)] = upright(scaler, frame, width, height, scaling)
                        read.append(position)
            except _BadSeekError:
                # Not every stream can be decoded from every key frame (periodic intra refresh).
                index = replace(index, seekable=False)
                yield from read_with_pyav(
                    index,
                    plan,
                    positions[first:],
                    width,
                    height,
                    chunk,
                    threads,
                    only_keys,
                    scaling,
                    pictures,
                )
                return
            yield np.array(read, np.int64), frames[: len(read)], damage


class _Player:
    """Plays a file forwards and skips to the next key frame where it can."""

    def __init__(
        self,
        container: av.container.InputContainer,
        index: FrameIndex,
        stamps: list[int],
        threads: int,
        only_keys: bool,
    ):
        """`stamps` are all the timestamps that will be asked for."""
        self._container, self._index, self._only_keys = container, index, only_keys
        self._stream = container.streams.best("video")
        self._stream.codec_context.thread_count = threads
        self._stream.thread_type = "AUTO" if threads > 1 else "NONE"
        if only_keys:
            self._stream.codec_context.skip_frame = "NONKEY"
        # With several threads, packets are decoded together, and one mode of skipping holds for all of them.
        self._needed = set(stamps) if index.skippable and threads == 1 and not only_keys else None
        self._key_pts = index.pts[index.keys]
        self._freeze = _FREEZE / float(self._stream.time_base)
        self._decoded = self._decode(self._key_pts if only_keys else index.pts)
        self._shown: Any = None  # the frame on screen
        self._ahead: Any = None  # the one after it, if it is decoded already
        self._ended = self._sought = False

    def frame_at(self, stamp: int) -> tuple[av.VideoFrame | None, bool]:
        """The frame on screen at a timestamp or None, and whether it is the right frame and undamaged.

        Timestamps must not decrease from call to call.

        Raises:
            _BadSeekError: it is not, and that may be because of a seek.
        """
        self._seek(stamp)
        while not self._ended and (self._ahead is None or self._ahead.pts <= stamp):
            self._shown = self._ahead or self._shown
            if self._shown is not None and self._shown.pts == stamp:
                break
            self._ahead = next(self._decoded, None)
            self._ended = self._ahead is None
        shown = self._shown
        found = shown is not None and stamp - self._freeze <= shown.pts <= stamp
        whole = found and shown.pts == stamp and not shown.is_corrupt
        if self._sought and not whole:
            raise _BadSeekError
        return shown if found else None, whole

    def _seek(self, stamp: int) -> None:
        """Go to the last key frame before `stamp`, if it lies ahead."""
        keys_before = int(np.searchsorted(self._key_pts, stamp, side="right"))
        # Key frames are returned late, after the next ones were sent: seeking would decode them twice.
        if not self._index.seekable or not keys_before or (self._only_keys and self._shown):
            return
        key = int(self._key_pts[keys_before - 1])
        if key > ((self._ahead or self._shown).pts if self._shown else self._index.pts[0]):
            self._container.seek(key, stream=self._stream)
            self._decoded = self._decode(self._index.pts)
            self._sought, self._ahead = True, None

    def _decode(self, stamps: NDArray[np.int64]) -> Iterator[av.VideoFrame]:
        """Frames that have a timestamp; in an untimed container the n-th frame gets the n-th of `stamps`."""
        frames = _decode(self._container, self._stream, self._needed)
        if self._index.timed:
            yield from (frame for frame in frames if frame.pts is not None)
        else:
            for frame, stamp in zip(frames, stamps.tolist(), strict=False):
                frame.pts = stamp
                yield frame


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, needed: set[int] | None
) -> Iterator[av.VideoFrame]:
    """Frames in presentation order. With `needed` (timestamps), others that no frame depends on are skipped.

    A damaged packet loses its frames; where the file cannot be read further, the frames end.
    """
    context, mode = stream.codec_context, ""
    for packet in Clock(container, stream).packets(container, stream):
        if needed is not None:
            wanted_mode = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
            if wanted_mode != mode:
                context.skip_frame = mode = wanted_mode
        with suppress(av.FFmpegError):
            yield from packet.decode()


def upright(
    scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int, scaling: Scaling
) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] RGB of an SDR screen, rotated as the display matrix demands."""
    turns, mirrored = orientation(frame)
    frame = as_sdr(frame)
    if scaling.interpolation != "decoder":
        whole = scaler.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return scale_frame(np.ascontiguousarray(turned(whole, turns, mirrored)), width, height, scaling)
    size = (height, width) if turns % 2 else (width, height)
    scaled = scaler.reformat(frame, *size, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    return turned(scaled.to_ndarray(), turns, mirrored)


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """How a frame becomes upright: whether it is first turned upside down like a mirror image, and how often
    it is then turned counter-clockwise by 90 degrees."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist() if matrix else (1, 0, 0, 0, 1)
    return round(frame.rotation / 90) % 4, a * d < b * c


def turned(image: NDArray[Any], turns: int, mirrored: bool) -> NDArray[np.uint8]:
    """An image [height, width, 3] made upright, see `orientation`."""
    return np.rot90(image[::-1] if mirrored else image, turns)
