"""The files of one store: listing, writing and deleting them."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress

import pyarrow as pa
from pyarrow import fs

from vmr_ray.storage import absolute, filesystem, replacing


class StoreFolder:
    """The folder of a store at `root`, a local path or URI. Files in it are named by `path` on `fs`."""

    def __init__(self, root: str):
        self.fs, self.path = filesystem(root)
        self.root = absolute(root)

    def list(self, below: str = "") -> list[fs.FileInfo]:
        """All files below a folder of the store; by default all files of the store."""
        selector = fs.FileSelector(f"{self.path}/{below}".rstrip("/"), recursive=True, allow_not_found=True)
        return [info for info in self.fs.get_file_info(selector) if info.type == fs.FileType.File]

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError if the file is missing."""
        with self.fs.open_input_stream(path) as stream:
            data: bytes = stream.read()
        return data

    def write(self, path: str, data: bytes) -> None:
        with self.writing(path) as stream:
            stream.write(data)

    def writing(self, path: str) -> AbstractContextManager[pa.NativeFile]:
        """A stream into a file, see `storage.replacing`."""
        return replacing(self.fs, path)

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        with suppress(FileNotFoundError):
            self.fs.delete_file(path)
