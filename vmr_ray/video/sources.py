"""Find videos: paths, globs, directories, manifests and object-store URIs -> `Video` records."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

from pyarrow import fs
from wcmatch import glob

from vmr_ray.errors import VmrError
from vmr_ray.records import read_records
from vmr_ray.schema import Video
from vmr_ray.storage import filesystem, is_below, is_remote, is_uri

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
    | {
        ".flv",
        ".f4v",
        ".ogv",
        ".ogm",
        ".wmv",
        ".asf",
        ".3gp",
        ".3g2",
        ".qt",
        ".mk3d",
        ".divx",
        ".mpe",
        ".vob",
    }
    | {".m2t", ".tp", ".trp", ".mod", ".tod", ".lrv", ".insv"}  # of cameras and recorders
)
MANIFEST_SUFFIXES = frozenset({".jsonl", ".csv"})


def find_videos(
    inputs: Sequence[str | Path], storage_roots: Sequence[str] = (), left_out: list[str] | None = None
) -> list[Video]:
    """Every video the inputs name, sorted by video_id.

    The video_id is the path below the named directory (or below a glob's fixed part), and the file
    name for a single file; a manifest gives its own.

    A manifest may come from anywhere, so apart from local paths it may name only URIs below its own folder
    or below `storage_roots`.

    Files of a directory that are not taken, because of their ending or because their name is no text, are
    added to `left_out`.

    Raises:
        VmrError: an input does not exist or has no video, a manifest row is malformed or names a URI
            outside the roots, or two videos have the same video_id.
    """
    videos: dict[str, Video] = {}
    for item in map(str, inputs):
        named = list(_expand(item, storage_roots, [] if left_out is None else left_out))
        if not named:
            raise VmrError(
                f"no videos in {item}: expected files such as {', '.join(sorted(VIDEO_SUFFIXES))}; "
                "a file with another suffix can be named directly"
            )
        for video in named:
            other = videos.setdefault(video.video_id, video)
            if other.uri != video.uri:
                raise VmrError(
                    f"two videos have the id {video.video_id!r}: {other.uri} and {video.uri}; "
                    "embed their common directory, or give a manifest with video_id and uri"
                )
    return [videos[key] for key in sorted(videos)]


def _expand(item: str, roots: Sequence[str], left_out: list[str]) -> Iterator[Video]:
    filesys, path = filesystem(item)
    info = filesys.get_file_info(path)
    if info.type == fs.FileType.Directory:
        yield from _walk(filesys, path, item, None, left_out)
    elif info.type == fs.FileType.File:
        if PurePosixPath(path).suffix.lower() in MANIFEST_SUFFIXES:
            yield from _manifest(path, item, roots)
        else:
            yield _video(info, PurePosixPath(path).name, item)
    elif any(c in path for c in "*?["):
        base, pattern = _split_glob(path)
        yield from _walk(filesys, base, item, pattern, left_out)
    else:
        raise VmrError(f"no such file or directory: {item}")


def _video(info: fs.FileInfo, video_id: str, item: str) -> Video:
    return Video(video_id, _uri(item, info.path), f"{info.size}-{info.mtime_ns}", info.size)


def _uri(item: str, path: str) -> str:
    """`path` on the filesystem of `item`: a URI with its scheme, host and options, or a local path."""
    if not is_uri(item):
        return path
    parts = urlsplit(item)
    bucket = parts.netloc.rpartition("@")[2]  # object stores count it as part of the path
    inner = path.removeprefix(bucket) if path.startswith(f"{bucket}/") else path
    return urlunsplit((parts.scheme, parts.netloc, quote(inner), parts.query, ""))


def _walk(
    filesys: fs.FileSystem, base: str, item: str, pattern: str | None, left_out: list[str]
) -> Iterator[Video]:
    """The files below `base` that match `pattern`, or all videos if it is None; hidden ones are left out."""
    paths = _local_files(base, left_out) if isinstance(filesys, fs.LocalFileSystem) else None
    selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
    for info in filesys.get_file_info(selector if paths is None else paths):
        relative = PurePosixPath(info.path).relative_to(base)
        if info.type != fs.FileType.File or any(part.startswith(".") for part in relative.parts):
            continue
        if _matches(relative, pattern) if pattern else relative.suffix.lower() in VIDEO_SUFFIXES:
            yield _video(info, relative.as_posix(), item)
        elif not pattern:
            left_out.append(relative.as_posix())


def _local_files(base: str, left_out: list[str]) -> list[str]:
    """The files below a local folder, each folder once: a link upwards would repeat every video."""
    paths: list[str] = []
    visited: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(base, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        for name in [*folders, *names]:
            if problem := _name_problem(name):
                shown = os.fsencode(name).decode(errors="backslashreplace")
                left_out.append(f"{shown!r} ({problem}: rename it)")
        # Real folders before links to them, so that a video has the id of its own place.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".") and not _name_problem(name)),
            key=lambda name: (Path(folder, name).is_symlink(), name),
        )
        paths += [f"{folder.rstrip('/')}/{name}" for name in names if not _name_problem(name)]
    return paths


def _name_problem(name: str) -> str:
    """Why a file's name cannot be part of a video_id, or ""."""
    categories = {unicodedata.category(character) for character in name}
    if "Cs" in categories:  # what is left of bytes that are no text
        return "its name is not UTF-8"
    return "its name has a line break or another control character" if "Cc" in categories else ""


def _split_glob(path: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """Shell semantics: `*` stays within one directory, `**` spans them."""
    return bool(glob.globmatch(path.as_posix(), pattern, flags=glob.GLOBSTAR | glob.CASE))


def _manifest(path: str, item: str, roots: Sequence[str]) -> Iterator[Video]:
    folder = PurePosixPath(path).parent
    for line, row in read_records(item):
        video_id, uri = row.get("video_id"), row.get("uri")
        if not isinstance(video_id, str) or not isinstance(uri, str) or not video_id or not uri:
            raise VmrError(f"{item}, line {line}: a manifest row needs the texts 'video_id' and 'uri'")
        source = uri if is_uri(uri) else _uri(item, (folder / uri).as_posix())
        if is_remote(source) and not is_below(source, [_uri(item, folder.as_posix()), *roots]):
            raise VmrError(
                f"{item}, line {line}: {source} is not below the manifest's folder, nor below any of "
                "embed.storage_roots: add its prefix there to read it"
            )
        target, inner = filesystem(source)
        info = target.get_file_info(inner)
        # A missing file is an error of its video: it is quarantined when it is opened.
        if info.type == fs.FileType.File:
            yield Video(video_id, source, f"{info.size}-{info.mtime_ns}", info.size)
        else:
            yield Video(video_id, source)
