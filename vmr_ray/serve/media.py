"""Thumbnails and clips, a few at a time."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar

from vmr_ray.video import clips

_CACHED_THUMBNAILS = 256

Args = ParamSpec("Args")
Result = TypeVar("Result")


class MediaWorkers:
    """Makes thumbnails and clips of local files; at most `slots` decoders run at a time."""

    def __init__(self, slots: int = 2):
        self._slots = asyncio.Semaphore(slots)
        self._thumbnail = lru_cache(_CACHED_THUMBNAILS)(_thumbnail)
        self._playback = lru_cache(_CACHED_THUMBNAILS)(lambda path, _file_state: clips.playback(path))

    async def thumbnail(self, path: Path, second: float, width: int) -> bytes:
        """The frame on screen at a second as a JPEG, `width` pixels wide at most.

        Raises:
            VmrError: the file cannot be read.
        """
        task = await self._start(self._thumbnail, path, _state(path), round(1000 * second), width)
        return await asyncio.shield(task)

    async def playback(self, path: Path) -> clips.Playback:
        """How a player shows the file.

        Raises:
            VmrError: the file cannot be read.
        """
        task = await self._start(self._playback, path, _state(path))
        return await asyncio.shield(task)

    async def clip(self, path: Path, start: float, end: float) -> Path:
        """Cut `[start, end)` seconds into a temporary MP4 file, which the caller deletes.

        Raises:
            VmrError: the span is empty or too long, or the file cannot be read.
        """
        task = await self._start(_cut, path, start, end)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:  # the client has disconnected; the decoder still runs
            task.add_done_callback(_delete_clip)
            raise

    async def _start(
        self, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> asyncio.Task[Result]:
        """Run `work` in a thread once a slot is free. The slot is released when the work finishes, even if
        the client has disconnected."""
        await self._slots.acquire()
        task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
        task.add_done_callback(lambda _: self._slots.release())
        return task


def _state(path: Path) -> tuple[int, int]:
    """A part of the caches' keys: a file that was replaced gets new answers."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _thumbnail(path: Path, _file_state: tuple[int, int], milliseconds: int, width: int) -> bytes:
    return clips.thumbnail(path, milliseconds / 1000, width)


def _cut(path: Path, start: float, end: float) -> Path:
    descriptor, name = tempfile.mkstemp(suffix=".mp4")
    os.close(descriptor)
    try:
        return clips.clip(path, start, end, name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _delete_clip(task: asyncio.Task[Path]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().unlink(missing_ok=True)
