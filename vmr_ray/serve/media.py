"""Thumbnails and clips, a few at a time, and video files from object storage."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar

from starlette.responses import Response, StreamingResponse

from vmr_ray.storage import filesystem
from vmr_ray.video import clips

_CACHED_THUMBNAILS = 256
_BLOCK = 1 << 20  # bytes

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
        stat = path.stat()
        file_state = (stat.st_size, stat.st_mtime_ns)
        task = await self._start(self._thumbnail, path, file_state, round(1000 * second), width)
        return await asyncio.shield(task)

    async def playback(self, path: Path) -> clips.Playback:
        """How a player shows the file.

        Raises:
            VmrError: the file cannot be read.
        """
        stat = path.stat()
        task = await self._start(self._playback, path, (stat.st_size, stat.st_mtime_ns))
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


def _thumbnail(path: Path, _file_state: tuple[int, int], milliseconds: int, width: int) -> bytes:
    """`_file_state` is part of the cache's key: a file that was replaced gets new thumbnails."""
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


def stream_remote(uri: str, media_type: str, range_header: str | None) -> Response:
    """A file in object storage, or the range of it that the client asks for."""
    filesys, path = filesystem(uri)
    file = filesys.open_input_file(path)
    size = file.size()
    first, last = (range_header and parse_range(range_header, size)) or (0, size - 1)

    async def blocks() -> AsyncIterator[bytes]:
        at = first
        with file:
            file.seek(first)
            while at <= last:
                block = await asyncio.to_thread(file.read, min(_BLOCK, last + 1 - at))
                if not block:
                    return
                at += len(block)
                yield block

    headers = {"Accept-Ranges": "bytes", "Content-Length": str(last + 1 - first)}
    if (first, last) == (0, size - 1):
        return StreamingResponse(blocks(), media_type=media_type, headers=headers)
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return StreamingResponse(blocks(), status_code=206, media_type=media_type, headers=headers)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The first range of a Range header: its first and last byte, both included.

    None if the header is malformed or the range is empty; the whole file is then the right answer.
    """
    match = re.match(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*(?:,|$)", header)
    if not match or not (match[1] or match[2]):
        return None
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    return (first, last) if first <= last else None
