"""Video files as answers: the indexed file and no other, whole or in parts."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from fastapi import HTTPException
from starlette.responses import Response, StreamingResponse

from vmr_ray.features.chunks import version_key
from vmr_ray.storage import filesystem, is_remote

PART = 4 << 20  # bytes: the answer to a range without an end
_BLOCK = 1 << 18  # bytes


class IndexedFile(NamedTuple):
    """An open video file, and its size in bytes."""

    file: BinaryIO | pa.NativeFile
    size: int


class OpenedVideos:
    """Rows of the videos that were streamed last, so that getting the next piece asks no ranker.

    Only a request that names the version in If-Match gets one: it goes on with an answer that has begun.
    """

    def __init__(self, limit: int = 512):
        self._rows: OrderedDict[tuple[str, str], Mapping[str, Any]] = OrderedDict()
        self._limit = limit

    def get(self, video_id: str, if_match: str | None) -> Mapping[str, Any] | None:
        """The row of a video; None if it has to be looked up."""
        return self._rows.get((video_id, if_match or ""))

    def add(self, row: Mapping[str, Any]) -> None:
        key = (row["video_id"], _etag(row["version"]))
        self._rows[key] = row
        self._rows.move_to_end(key)
        if len(self._rows) > self._limit:
            self._rows.popitem(last=False)


def _etag(version: str) -> str:
    return f'"{version}"'


def open_indexed(uri: str, version: str, video_id: str) -> IndexedFile:
    """Open the file of a video.

    The descriptor that is checked is the one that is read, so a file or link that is put in its place later
    is never answered.

    Args:
        version: the index's; it changes with the file.

    Raises:
        HTTPException: 404 there is no such file here, 409 it is not the file that was indexed.
    """
    name = f"the file of the video {video_id[:200]!r}"
    try:
        if is_remote(uri):
            files, path = filesystem(uri)
            info = files.get_file_info(path)
            opened = IndexedFile(files.open_input_file(path), info.size)
            fingerprint = f"{info.size}-{info.mtime_ns}"
        else:
            opened, fingerprint = _open_local(uri.removeprefix("file://"))
    except OSError:
        raise HTTPException(404, f"{name} is not on this machine") from None
    if version_key(fingerprint) != version:
        opened.file.close()
        raise HTTPException(409, f"{name} has changed since it was indexed: index it again")
    return opened


def _open_local(path: str) -> tuple[IndexedFile, str]:
    # Links are resolved here, and none is followed afterwards. Opening a pipe does not wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(Path(path).resolve(strict=True), flags), "rb")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise FileNotFoundError(path)
    return IndexedFile(file, status.st_size), f"{status.st_size}-{status.st_mtime_ns}"


def stream_file(
    opened: IndexedFile, version: str, media_type: str, headers: Mapping[str, str], has_body: bool = True
) -> Response:
    """The answer with an open file, which it closes: the file, or the range of it that the client asks for.

    A range without an end is answered with its first few megabytes. Players then ask for the next ones; one
    that is paused does not, so that it costs no memory.

    Args:
        headers: the request's.
        has_body: False for the answer to HEAD.
    """
    file, size = opened
    etag = _etag(version)
    if headers.get("if-match", etag) not in (etag, "*"):
        file.close()
        raise HTTPException(412, "the file has changed: send the request again without If-Match")
    asked = headers.get("range") if headers.get("if-range", etag) == etag else None
    parsed = parse_range(asked, size) if asked else None
    sent = {"Accept-Ranges": "bytes", "ETag": etag}
    if parsed and parsed[0] >= size:
        file.close()
        raise HTTPException(416, f"the file has {size} bytes", sent | {"Content-Range": f"bytes */{size}"})
    first, last = parsed or (0, size - 1)
    sent["Content-Length"] = str(last + 1 - first)
    if parsed:
        sent["Content-Range"] = f"bytes {first}-{last}/{size}"
    status = 206 if parsed else 200
    if not has_body:
        file.close()
        return Response(status_code=status, media_type=media_type, headers=sent)
    return StreamingResponse(_blocks(file, first, last), status, sent, media_type)


async def _blocks(file: BinaryIO | pa.NativeFile, first: int, last: int) -> AsyncIterator[bytes]:
    with file:
        file.seek(first)
        while first <= last:
            block = await asyncio.to_thread(file.read, min(_BLOCK, last + 1 - first))
            if not block:
                return
            first += len(block)
            yield block


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The first range of a Range header: its first and last byte, both included. One without a beginning or
    an end is limited to PART bytes; the first byte may lie behind the file's end.

    None if the header is malformed or the range is empty; the whole file is then the right answer.
    """
    match = re.match(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*(?:,|$)", header)
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:
        first = max(0, size - int(match[2]))
        return (first, min(first + PART, size) - 1) if int(match[2]) and size else None
    first = int(match[1])
    last = min(int(match[2]) if match[2] else first + PART - 1, size - 1)
    if match[2] and int(match[2]) < first:
        return None
    return first, last
