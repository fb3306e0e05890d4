"""Uploaded videos: one file for each in INDEX/ingest/uploads/, named after the video."""

from __future__ import annotations

import asyncio
import time
import unicodedata
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
_MAX_NAME = 255  # bytes, what file systems take

T = TypeVar("T")


def is_upload(scope: Scope) -> bool:
    """Whether a request's body is a file, which may be large and is written to disk as it comes."""
    if scope["method"] != "POST" or not scope["path"].endswith("/v1/videos"):
        return False
    header = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"content-type"), "")
    return header.partition(";")[0].strip().lower() not in ("", "application/json")


def upload_name(name: str) -> str:
    """The file name of an upload, in the composed form of Unicode.

    Raises:
        VmrError: it cannot be the name of a video file.
    """
    name = unicodedata.normalize("NFC", name)
    if problem := _name_problem(name):
        raise VmrError(f"name {problem}")
    return name


def _name_problem(name: str) -> str:
    """Why a file cannot be called `name`, or ""."""
    # Surrogates are what is left of bytes that are not UTF-8.
    if any(character == "/" or unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "must not have a slash, a line break or another control character"
    if len(name.encode()) > _MAX_NAME:
        return f"is {len(name.encode())} bytes long, at most {_MAX_NAME} are stored: shorten it"
    if PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
        return f"must have the suffix of a video, such as {', '.join(sorted(VIDEO_SUFFIXES)[:4])}"
    return ""


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
