"""Videos of object storage as local files."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO

from vmr_ray.schema import Video
from vmr_ray.storage import filesystem, is_remote


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
