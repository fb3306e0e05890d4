"""Local copies of videos in object storage."""

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
    """Fetches videos from object storage and keeps the copies of the last `keep` of them.

    The threads of one worker share the copies, so that one can fetch while another decodes. Copies in use
    stay on disk beyond `keep`.
    """

    def __init__(self, keep: int):
        self._keep = keep
        self._copies: OrderedDict[Video, _Copy] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def local(self, video: Video) -> Iterator[str]:
        """The path of a local file with the video's content; a local video's own path.

        Raises:
            OSError, VmrError: the video cannot be fetched.
        """
        if not is_remote(video.uri):
            yield filesystem(video.uri)[1]
            return
        with self._lock:
            copy = self._copies.setdefault(video, _Copy())
            self._copies.move_to_end(video)
            while len(self._copies) > self._keep:
                self._copies.popitem(last=False)  # its file is deleted when its last user is done
        try:
            yield copy.fetch(video.uri)
        except OSError:
            with self._lock:
                self._copies.pop(video, None)
            raise


class _Copy:
    """The copy of one video; the first `fetch` makes it."""

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
