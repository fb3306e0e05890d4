"""Thumbnails and clips, a few at a time."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from vmr_ray.features.pictures import Pictures
from vmr_ray.serve.errors import storage_error
from vmr_ray.video import clips
from vmr_ray.video.decode.picture import MAX_DECODED

_CACHED = 256  # answers

Args = ParamSpec("Args")
Result = TypeVar("Result")


@dataclass(frozen=True)
class OpenedVideo:
    """An open file, which is read whatever its path leads to by now; `MediaWorkers` closes it.

    It equals another one of the same file, unless the file has been changed in between.
    """

    path: Path
    state: tuple[int, ...]
    file: BinaryIO = field(compare=False)

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> OpenedVideo:
        status = os.fstat(file.fileno())
        return cls(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns), file)


class MediaWorkers:
    """Makes thumbnails and clips of local files; at most `slots` decoders run at a time."""

    def __init__(self, slots: int = 2):
        self._slots = asyncio.Semaphore(slots)
        self._thumbnail = lru_cache(_CACHED)(_thumbnail)
        self._playback = lru_cache(_CACHED)(_playback)

    async def thumbnail(
        self, video: OpenedVideo, second: float, width: int, kept: KeptPictures | None = None
    ) -> bytes:
        """The frame on screen at a second as a JPEG, `width` pixels wide at most.

        Args:
            kept: pictures of the video; if there are any, the nearest one is the answer where a key frame is
                far.

        Raises:
            VmrError: the file cannot be read.
        """
        task = await self._start(video, self._thumbnail, video, round(1000 * second), width, kept)
        return await asyncio.shield(task)

    async def playback(self, video: OpenedVideo) -> clips.Playback:
        """How a player shows the file.

        Raises:
            VmrError: the file cannot be read.
        """
        return await asyncio.shield(await self._start(video, self._playback, video))

    async def clip(self, video: OpenedVideo, start: float, end: float) -> Path:
        """Cut `[start, end)` seconds into a temporary MP4 file, which the caller deletes.

        The decoder ends when the client disconnects.

        Raises:
            VmrError: the span is empty or too long, or the file cannot be read.
            StorageError: there is no room for the clip.
        """
        stop = threading.Event()
        task = await self._start(video, _cut, video, start, end, stop)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:  # the client has disconnected
            stop.set()
            task.add_done_callback(_delete_clip)
            raise

    async def _start(
        self, video: OpenedVideo, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> asyncio.Task[Result]:
        """Run `work` in a thread once a slot is free. The slot is released and the video closed when the work
        finishes, even if the client has disconnected."""
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            video.file.close()
            raise
        task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
        task.add_done_callback(lambda _: self._slots.release())
        task.add_done_callback(lambda _: video.file.close())
        return task


@dataclass(frozen=True)
class KeptPictures:
    """The pictures of a version of a video in an index, as embedding has made them."""

    index: str
    video_id: str
    version: str

    def nearest(self, second: float, width: int) -> bytes | None:
        """The JPEG of the frame nearest to a second, `width` pixels wide at most; None if there are none."""
        jpeg = Pictures(self.index).nearest(self.video_id, self.version, second)
        return None if jpeg is None else clips.narrowed(jpeg, width)


def _thumbnail(video: OpenedVideo, milliseconds: int, width: int, kept: KeptPictures | None) -> bytes:
    second = milliseconds / 1000
    near = kept and kept.nearest(second, width)
    limit = MAX_DECODED if near else None
    try:
        return clips.thumbnail(video.path, second, width, descriptor=video.file.fileno(), max_decoded=limit)
    except clips.FarError:
        assert near
        return near


def _playback(video: OpenedVideo) -> clips.Playback:
    return clips.playback(video.path, descriptor=video.file.fileno())


def _cut(video: OpenedVideo, start: float, end: float, stop: threading.Event) -> Path:
    try:
        descriptor, name = tempfile.mkstemp(suffix=".mp4")
        os.close(descriptor)
        try:
            return clips.clip(video.path, start, end, name, descriptor=video.file.fileno(), stop=stop)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise storage_error(error) from None


def _delete_clip(task: asyncio.Task[Path]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().unlink(missing_ok=True)
