"""Files by path or URI: every stage finds, reads and writes them through this module.

No file is ever half-written: the data goes to a temporary name next to it, which is renamed at the end. A
process that is killed at any moment leaves the old file or the new one. What is written with `durable` also
survives a power cut from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from vmr_ray.errors import FullDiskError, VmrError, causes, full_disk, is_full_disk, one_line

_MAX_NAME = 255  # bytes
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part$")  # how the names of unfinished files end


def is_uri(path: str | Path) -> bool:
    """Whether `path` has a scheme, `file://` included."""
    return "://" in str(path)


def is_remote(path: str | Path) -> bool:
    """Whether `path` is on another machine: a URI, but not `file://`."""
    return is_uri(path) and not str(path).startswith("file://")


def absolute(path: str | Path) -> str:
    """A URI as it is; a local path from the root, because workers may run in another directory."""
    return str(path) if is_uri(path) else str(Path(path).expanduser().absolute())


def join(path: str | Path, *names: str) -> str:
    """The path or URI of something below `path`; the options of a URI (`?...`) stay at its end."""
    base, mark, options = str(path).partition("?") if is_uri(path) else (str(path), "", "")
    return "/".join([base.rstrip("/"), *names]) + mark + options


def filesystem(path: str | Path) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a path or URI, and the path inside it.

    Raises:
        VmrError: the scheme is unknown or its filesystem cannot be reached.
    """
    try:
        if is_uri(path):
            return fs.FileSystem.from_uri(str(path))
        return fs.LocalFileSystem(), Path(absolute(path)).as_posix()
    except (ValueError, OSError) as error:
        raise VmrError(f"cannot use {path}: {one_line(error)}") from None


def redact_credentials(text: str) -> str:
    """Text without the user names and passwords of the URIs in it."""
    return re.sub(r"://[^/\s@]*@", "://", text)


def exists(path: str | Path) -> bool:
    """Whether `path` is an existing file."""
    filesys, inner = filesystem(path)
    return bool(filesys.get_file_info(inner).type == fs.FileType.File)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it is missing (FileNotFoundError) or cannot be read.
    """
    filesys, inner = filesystem(path)
    with filesys.open_input_stream(inner) as stream:
        data: bytes = stream.read()
    return data


def read_json(path: str | Path, fix: str) -> Any:
    """The value in a JSON file; `fix` is the end of the error's sentence: what to do about a damaged file.

    Raises:
        FileNotFoundError: it does not exist.
        VmrError: the file is empty, damaged or cannot be read.
    """
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise VmrError(f"{redact_credentials(str(path))} is damaged ({one_line(error)}): {fix}") from None


def write_bytes(path: str | Path, data: bytes, durable: bool = False) -> None:
    """Write a file under a temporary name, then rename it; missing folders are made."""
    with replacing(*filesystem(path), durable) as stream:
        stream.write(data)


def write_json(path: str | Path, value: Any, durable: bool = False) -> None:
    """Write `value` as JSON, as `write_bytes` does."""
    write_bytes(path, json.dumps(value, indent=1).encode(), durable)


@contextmanager
def replacing(filesys: fs.FileSystem, path: str, durable: bool = False) -> Iterator[pa.NativeFile]:
    """A stream into the file `path` of a filesystem; the file appears or changes when the block ends.

    If the block raises, the file is left as it was.
    """
    with temporary_name(filesys, path) as temporary:
        with filesys.open_output_stream(temporary) as stream:
            yield stream
        if durable:
            flush(filesys, temporary)
        filesys.move(temporary, path)
    if durable:
        flush(filesys, str(PurePosixPath(path).parent))


def flush(filesys: fs.FileSystem, path: str) -> None:
    """Wait until a closed file, or the names in a folder, are on the disk. Object stores do it themselves."""
    if isinstance(filesys, fs.LocalFileSystem):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def temporary_name(filesys: fs.FileSystem, path: str) -> Iterator[str]:
    """A free name next to `path`, to write to and then move; missing folders are made.

    If the block raises, the file of that name is deleted. An object store needs this too: closing a stream
    completes the upload, even when the block that wrote to it has failed. The error of a full disk names the
    path.
    """
    with naming_full_disk(path), _temporary_name(filesys, path) as temporary:
        yield temporary


@contextmanager
def naming_full_disk(path: str) -> Iterator[None]:
    """Put the path that is written into the error of a full disk; those of pyarrow and Ray have none."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error) or any(isinstance(cause, FullDiskError) for cause in causes(error)):
            raise
        raise full_disk(path) from error


@contextmanager
def _temporary_name(filesys: fs.FileSystem, path: str) -> Iterator[str]:
    filesys.create_dir(str(PurePosixPath(path).parent), recursive=True)
    ending = f".{uuid.uuid4().hex}.part"
    folder, slash, name = path.rpartition("/")
    # A long name is cut, because file systems take no longer one.
    name = name.encode()[: _MAX_NAME - len(ending)].decode(errors="ignore")
    temporary = f"{folder}{slash}{name}{ending}"
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):
            filesys.delete_file(temporary)
        raise


def refuse_input(output: str | Path, inputs: Iterable[str | Path], option: str = "") -> None:
    """Check before anything is written that an output is not one of the inputs, nor a link to one.

    Raises:
        VmrError: it is.
    """
    for item in inputs:
        same = False
        if is_remote(output) or is_remote(item):
            same = str(output) == str(item)
        else:
            with suppress(OSError):
                same = Path(filesystem(output)[1]).samefile(filesystem(item)[1])
        if same:
            raise VmrError(
                f"{option} {output} is an input and would be overwritten: name another file".strip()
            )


def short_hash(text: str, length: int = 12) -> str:
    """The first hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def is_below(uri: str, roots: Iterable[str]) -> bool:
    """Whether the URI lies below one of `roots`: by whole path segments, with the same host and options.

    The path is decoded twice before it is searched for "..", because some object stores decode it again.
    """
    parts = urlsplit(uri)
    if parts.fragment or ".." in unquote(unquote(parts.path)).split("/"):
        return False
    for root in map(urlsplit, filter(is_uri, roots)):
        same_place = (parts.scheme, parts.netloc, parts.query) == (root.scheme, root.netloc, root.query)
        if same_place and f"{parts.path}/".startswith(f"{root.path.rstrip('/')}/"):
            return True
    return False
