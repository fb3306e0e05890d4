"""Uploaded videos: one file for each in INDEX/ingest/uploads/, named after the video."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import quote

from fastapi import HTTPException
from pyarrow import fs
from starlette.types import Scope

from vmr_ray.errors import VmrError
from vmr_ray.storage import filesystem, is_remote, replacing
from vmr_ray.video.sources import VIDEO_SUFFIXES

_STALE_NS = 24 * 3600 * 10**9
_FOLDER = "ingest/uploads"

T = TypeVar("T")


def is_upload(scope: Scope) -> bool:
    """Whether a request's body is a file, which may be large and is written to disk as it comes."""
    if scope["method"] != "POST" or not scope["path"].endswith("/v1/videos"):
        return False
    header = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"content-type"), "")
    return header.partition(";")[0].strip().lower() not in ("", "application/json")


def check_media_type(content_type: str) -> None:
    """Raises HTTPException (415) if a body of this type is neither JSON nor a video.

    A page of another site can make a browser send a form or plain text, but no video without asking first.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not kind.startswith("video/") and kind not in ("", "application/json", "application/octet-stream"):
        raise HTTPException(
            415,
            f"a body of type {kind[:100]!r} is not taken: send the file itself, as "
            "`curl --data-binary @FILE -H 'Content-Type: video/mp4' 'URL/v1/videos?name=FILE'` does",
        )


def upload_name(name: str) -> str:
    """The file name of an upload. Raises VmrError if it is not a plain name of a video file."""
    is_plain = re.fullmatch(r"\w[\w .()+-]{0,199}", name)
    if not is_plain or PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
        raise VmrError(
            "name must be a plain file name of letters, digits and .()+-_ with the suffix of a video, "
            f"such as {', '.join(sorted(VIDEO_SUFFIXES)[:4])}"
        )
    return name


class Uploads:
    """The uploaded files of one index.

    Raises:
        VmrError: the index's storage cannot be reached.
    """

    def __init__(self, index: str):
        self._index = index
        self._files, root = filesystem(index)
        self._folder = f"{root}/{_FOLDER}"

    def uri(self, name: str) -> str:
        """Where `vmr embed` reads the file: a URI in object storage, else a path."""
        return f"{self._index}/{_FOLDER}/{quote(name)}" if is_remote(self._index) else self._path(name)

    async def receive(self, blocks: AsyncIterator[bytes], name: str, max_bytes: int) -> None:
        """Write the body of a request to the file `name`; if anything fails, nothing of it is left.

        Raises:
            HTTPException: 409 there is such a file, 413 the body is too large, 422 it is empty.
        """
        await asyncio.to_thread(self._check_free, name)
        size = 0
        async with _in_thread(replacing(self._files, self._path(name))) as file:
            async for block in blocks:
                size += len(block)
                check_size(size, max_bytes)
                await asyncio.to_thread(file.write, block)
            if not size:
                raise HTTPException(422, "the body is empty: send the file as the request's body")
            await asyncio.to_thread(file.close)  # object storage takes its time to complete a file
            await asyncio.to_thread(self._check_free, name)  # another upload may have been faster

    def remove(self, video_id: str) -> None:
        """Delete the uploaded file of a video, if it was uploaded."""
        try:
            name = upload_name(video_id)
        except VmrError:
            return
        if self._is_file(name):
            self._files.delete_file(self._path(name))

    def remove_stale(self) -> None:
        """Delete the unfinished files of uploads whose replica died: those that have not grown for a day."""
        oldest = time.time_ns() - _STALE_NS
        for info in self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True)):
            if info.extension == "part" and info.mtime_ns < oldest:
                self._files.delete_file(info.path)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _is_file(self, name: str) -> bool:
        return bool(self._files.get_file_info(self._path(name)).type == fs.FileType.File)

    def _check_free(self, name: str) -> None:
        if self._is_file(name):
            raise HTTPException(
                409, f"the video {name!r} was uploaded already and is being added: ask for its job"
            )


def check_size(size: int, max_bytes: int) -> None:
    """Raises HTTPException (413) if an upload of `size` bytes is too large."""
    if size > max_bytes:
        raise HTTPException(413, f"the file exceeds {max_bytes >> 20} MB")


@asynccontextmanager
async def _in_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave `manager` in a thread, because both wait for the storage."""
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    except BaseException as error:
        await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__)
        raise
    else:
        await asyncio.to_thread(manager.__exit__, None, None, None)
