"""Paths, globs, directories, manifests and object-store URIs -> Video rows."""

from __future__ import annotations

import csv
import json
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pyarrow import fs

from vmr_ray.errors import VmrError
from vmr_ray.schema import Video

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
    | {".flv", ".ogv", ".wmv", ".asf", ".3gp"}
)
MANIFEST_SUFFIXES = frozenset({".jsonl", ".csv"})


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a URI or local path, and the path inside it.

    Raises:
        VmrError: the scheme is unknown or its filesystem cannot be reached.
    """
    try:
        if "://" in uri:
            return fs.FileSystem.from_uri(uri)
        return fs.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    except (ValueError, OSError) as error:
        raise VmrError(f"cannot use {uri}: {' '.join(str(error).split())}") from None


def is_remote(uri: str) -> bool:
    """Whether `uri` is not a local path (or `file://`)."""
    return "://" in uri and not uri.startswith("file://")


def public(text: str) -> str:
    """Text without the names and passwords that its URIs may hold."""
    return re.sub(r"://[^/\s@]*@", "://", text)


def find_videos(inputs: Sequence[str | Path], storage_roots: Sequence[str] = ()) -> list[Video]:
    """Every video the inputs name, sorted by video_id.

    The video_id is the path below the named directory (or below a glob's fixed part), and the file
    name for a single file; a manifest gives its own.

    A manifest is data from anywhere: beside local paths it may name only URIs below its own folder and
    below `storage_roots`.

    Raises:
        VmrError: an input does not exist or holds no video, a manifest row is malformed or names a URI
            outside the roots, or two videos have the same video_id.
    """
    videos: dict[str, Video] = {}
    for item in map(str, inputs):
        found = list(_expand(item, storage_roots))
        if not found:
            raise VmrError(
                f"no videos in {item}: expected files such as {', '.join(sorted(VIDEO_SUFFIXES))}; "
                "a file with another suffix can be named directly"
            )
        for video in found:
            other = videos.setdefault(video.video_id, video)
            if other.uri != video.uri:
                raise VmrError(
                    f"two videos have the id {video.video_id!r}: {other.uri} and {video.uri}; "
                    "embed their common directory, or give a manifest with video_id and uri"
                )
    return [videos[key] for key in sorted(videos)]


def _expand(item: str, roots: Sequence[str]) -> Iterator[Video]:
    filesys, path = filesystem(item)
    info = filesys.get_file_info(path)
    if info.type == fs.FileType.Directory:
        yield from _walk(filesys, path, item, None)
    elif info.type == fs.FileType.File:
        if PurePosixPath(path).suffix.lower() in MANIFEST_SUFFIXES:
            yield from _manifest(filesys, path, item, roots)
        else:
            yield _video(info, PurePosixPath(path).name, item)
    elif any(c in path for c in "*?["):
        base, pattern = _split_glob(path)
        yield from _walk(filesys, base, item, pattern)
    else:
        raise VmrError(f"no such file or directory: {item}")


def _video(info: fs.FileInfo, video_id: str, item: str) -> Video:
    return Video(video_id, _uri(item, info.path), f"{info.size}-{info.mtime_ns}", info.size)


def _uri(item: str, path: str) -> str:
    """The URI of `path` on the filesystem of `item`: its scheme, authority and options, the path encoded."""
    if "://" not in item:
        return path
    parts = urlsplit(item)
    bucket = parts.netloc.rpartition("@")[2]  # which object stores count to the path
    inner = path.removeprefix(bucket) if path.startswith(f"{bucket}/") else path
    return urlunsplit((parts.scheme, parts.netloc, quote(inner), parts.query, ""))


def _walk(filesys: fs.FileSystem, base: str, item: str, pattern: str | None) -> Iterator[Video]:
    for info in filesys.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True)):
        relative = PurePosixPath(info.path).relative_to(base)
        if info.type != fs.FileType.File or any(part.startswith(".") for part in relative.parts):
            continue
        if _matches(relative, pattern) if pattern else relative.suffix.lower() in VIDEO_SUFFIXES:
            yield _video(info, relative.as_posix(), item)


def _split_glob(path: str) -> tuple[str, str]:
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """Shell semantics: `*` stays within one directory, `**` spans them."""
    if "**" in pattern:
        return fnmatch(path.as_posix(), pattern) or fnmatch(path.as_posix(), pattern.replace("**/", ""))
    wanted = pattern.split("/")
    return len(path.parts) == len(wanted) and all(map(fnmatch, path.parts, wanted))


def _manifest(filesys: fs.FileSystem, path: str, item: str, roots: Sequence[str]) -> Iterator[Video]:
    with filesys.open_input_stream(path) as stream:
        text = stream.read().decode("utf-8-sig", errors="replace")
    folder = PurePosixPath(path).parent
    for line, row in read_rows(text, item):
        video_id, uri = row.get("video_id"), row.get("uri")
        if not isinstance(video_id, str) or not isinstance(uri, str) or not video_id or not uri:
            raise VmrError(f"{item}, line {line}: a manifest row needs the texts 'video_id' and 'uri'")
        source = uri if "://" in uri else _uri(item, (folder / uri).as_posix())
        if not _allowed(source, [_uri(item, folder.as_posix()), *roots]):
            raise VmrError(
                f"{item}, line {line}: {source} is not below the manifest's folder, nor below any of "
                "embed.storage_roots: add its prefix there if it is to be read"
            )
        target, inner = filesystem(source)
        info = target.get_file_info(inner)
        # A missing file is that video's trouble, found and quarantined when it is opened.
        if info.type == fs.FileType.File:
            yield Video(video_id, source, f"{info.size}-{info.mtime_ns}", info.size)
        else:
            yield Video(video_id, source)


def _allowed(uri: str, roots: Sequence[str]) -> bool:
    """Whether `uri` is local, or lies below one of `roots` (in whole path segments, without `..`)."""
    if not is_remote(uri):
        return True
    if ".." in unquote(urlsplit(uri).path).split("/"):
        return False
    return any(is_remote(root) and f"{uri}/".startswith(f"{root.rstrip('/')}/") for root in roots)


class LocalCopies:
    """Videos of object storage as local files: of the last few, a copy is kept while others use it too.

    The threads of one worker share it, so one fetches while another decodes. `keep` files at most lie on
    disk, beside those in use.
    """

    def __init__(self, keep: int):
        self._keep = keep
        self._copies: OrderedDict[Video, _Copy] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def local(self, video: Video) -> Iterator[str]:
        """The path of a local file with the video's content; its own if it is local.

        Raises:
            OSError, VmrError: it cannot be fetched.
        """
        if not is_remote(video.uri):
            yield filesystem(video.uri)[1]
            return
        with self._lock:
            copy = self._copies.setdefault(video, _Copy())
            self._copies.move_to_end(video)
            while len(self._copies) > self._keep:
                self._copies.popitem(last=False)  # its file goes with its last user
        try:
            yield copy.fetch(video.uri)
        except OSError:
            with self._lock:
                self._copies.pop(video, None)
            raise


class _Copy:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None

    def fetch(self, uri: str) -> str:
        with self._lock:
            if self._file is None:
                source, path = filesystem(uri)
                file = tempfile.NamedTemporaryFile(prefix="vmr-", suffix=PurePosixPath(path).suffix)  # noqa: SIM115
                with source.open_input_stream(path) as stream:
                    while block := stream.read(8 << 20):
                        file.write(block)
                file.flush()
                self._file = file
            return self._file.name


def read_rows(text: str, item: str) -> Iterator[tuple[int, dict[str, object]]]:
    lines = text.splitlines()
    if item.lower().endswith(".csv"):
        yield from enumerate(csv.DictReader(lines), start=2)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise VmrError(f"{item}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise VmrError(f"{item}, line {number}: expected an object with 'video_id' and 'uri'")
        yield number, row
