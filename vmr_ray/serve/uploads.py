"""Uploaded videos: INDEX/ingest/uploads/, one file for each job, named after the job.

A file exists before its job does and belongs to it alone, so uploads of one name never meet in a file. Whose
name is free is decided when the job is added. What belongs to no job is deleted by `remove_orphans`.
"""

from __future__ import annotations

import asyncio
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from pathlib import PurePosixPath
from typing import ParamSpec, TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
from fastapi import HTTPException
from pyarrow import fs
from starlette.types import Scope

from vmr_ray.errors import VmrError
from vmr_ray.serve.errors import storage_error
from vmr_ray.storage import filesystem, flush, is_remote, is_uri, join
from vmr_ray.video.sources import VIDEO_SUFFIXES

_STALE_NS = 3600 * 10**9  # longer than a body may stall, and than it takes to add its job
_FOLDER = "ingest/uploads"
_MAX_NAME = 255  # bytes, what file systems take

Args = ParamSpec("Args")
Result = TypeVar("Result")


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
    """The file name of an upload, in the composed form of Unicode.

    Raises:
        VmrError: it cannot be the name of a video file.
    """
    name = unicodedata.normalize("NFC", name)
    if problem := _name_problem(name):
        raise VmrError(f"name {problem}")
    return name


def has_control(name: str) -> bool:
    """Whether a name has a control character or a surrogate, which is what is left of a byte not in UTF-8."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def _name_problem(name: str) -> str:
    """Why a file cannot be called `name`, or ""."""
    if "/" in name or has_control(name):
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

    def uri(self, job_id: str, name: str) -> str:
        """Where the file `name` of a job is: a URI in object storage, else a path."""
        return self._uri(f"{job_id}{PurePosixPath(name).suffix.lower()}")

    async def receive(self, blocks: AsyncIterator[bytes], job_id: str, name: str, max_bytes: int) -> str:
        """Write the body of a request to the file of a job, until it is on the disk, and return its URI.

        If anything fails, or the client goes away, nothing of it is left.

        Raises:
            HTTPException: 413 the body is too large, 422 it is empty.
            StorageError: it cannot be stored.
        """
        uri = self.uri(job_id, name)
        path = self._path(_file_name(uri))
        stream, size = None, 0
        try:
            stream = await _stored(self._open, path)
            async for block in blocks:
                size += len(block)
                check_size(size, max_bytes)
                await _stored(stream.write, block)
            if not size:
                raise HTTPException(422, "the body is empty: send the file as the request's body")
            await _stored(self._complete, stream, path)
        except BaseException:
            await _to_its_end(self._discard, stream, path)
            raise
        return uri

    def job_id(self, uri: str) -> str | None:
        """The id of the job that a URI of `uri` belongs to; None if the file was not uploaded."""
        name = _file_name(uri)
        return PurePosixPath(name).stem if uri == self._uri(name) else None

    def remove(self, uri: str) -> None:
        """Delete the file at a URI of `uri`. Does nothing if it was not uploaded, or is deleted already."""
        path = self._path(_file_name(uri))
        if self.job_id(uri) is not None and self._files.get_file_info(path).type == fs.FileType.File:
            self._files.delete_file(path)

    def remove_orphans(self, uris: Collection[str], job_ids: Collection[str]) -> None:
        """Delete the files that belong neither to `uris` nor to `job_ids` and have not grown for an hour."""
        # By names, because the URIs in an index that was moved lead to its former place.
        names = {_file_name(uri) for uri in uris}
        oldest = time.time_ns() - _STALE_NS
        for info in self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True)):
            kept = info.base_name in names or PurePosixPath(info.base_name).stem in job_ids
            if info.type == fs.FileType.File and not kept and info.mtime_ns < oldest:
                self._files.delete_file(info.path)

    def _uri(self, file_name: str) -> str:
        remote = is_remote(self._index)
        return join(self._index, _FOLDER, quote(file_name)) if remote else self._path(file_name)

    def _path(self, file_name: str) -> str:
        return f"{self._folder}/{file_name}"

    def _open(self, path: str) -> pa.NativeFile:
        self._files.create_dir(self._folder, recursive=True)
        return self._files.open_output_stream(path)

    def _complete(self, stream: pa.NativeFile, path: str) -> None:
        stream.close()
        flush(self._files, path)
        flush(self._files, self._folder)

    def _discard(self, stream: pa.NativeFile | None, path: str) -> None:
        with suppress(OSError):  # the error that led here is the one to report
            if stream:
                stream.close()
        with suppress(OSError):
            self._files.delete_file(path)


def check_size(size: int, max_bytes: int) -> None:
    """Raises HTTPException (413) if an upload of `size` bytes is too large."""
    if size > max_bytes:
        raise HTTPException(413, f"the file exceeds {max_bytes >> 20} MB")


def _file_name(uri: str) -> str:
    return unquote(uri.partition("?")[0].rpartition("/")[2]) if is_uri(uri) else uri.rpartition("/")[2]


async def _stored(work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Run `work`, which writes, in a thread. Raises StorageError if it cannot."""
    try:
        return await _to_its_end(work, *args, **kwargs)
    except OSError as error:
        raise storage_error(error) from None


async def _to_its_end(work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Run `work` in a thread, also to its end if the request is cancelled: what follows must not meet it."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
