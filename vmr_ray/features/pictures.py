"""Small pictures of videos whose key frames are far apart, so that to show one costs no minutes of decoding.

    ROOT/pictures/<video>-<version>/<chunk>.parquet    `second` and `jpeg` of each picture of a chunk

Embedding decodes such a video from its beginning anyway, and keeps a picture every few seconds. The feature
store has them, and an index a copy of its own. `<video>` and `<version>` are those of the chunks' names.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vmr_ray.features.chunks import video_key
from vmr_ray.features.folder import StoreFolder

Picture = tuple[float, bytes]  # the second at which its frame begins, and a JPEG
_SCHEMA = pa.schema([("second", pa.float64()), ("jpeg", pa.binary())])


class Pictures:
    """The pictures in a feature store or an index at `root`, a local path or URI."""

    def __init__(self, root: str):
        self._folder = StoreFolder(root)

    def write(self, video_id: str, version: str, chunk: int, pictures: Sequence[Picture]) -> None:
        """Keep the pictures of one chunk; `version` is the `version_key` of the video's file."""
        rows = [dict(zip(_SCHEMA.names, picture, strict=True)) for picture in pictures]
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), out)
        self._folder.write(self._path(video_id, version, f"{chunk:05d}.parquet"), out.getvalue())

    def versions(self) -> dict[str, list[str]]:
        """`<video>-<version>` -> the paths of its files, of all videos that have pictures."""
        found: dict[str, list[str]] = defaultdict(list)
        for info in self._folder.list("pictures"):
            if info.path.endswith(".parquet"):
                found[PurePosixPath(info.path).parent.name].append(info.path)
        return found

    def copy(self, source: Pictures, keys: Collection[str]) -> None:
        """Copy the pictures of these `<video>-<version>`, where `source` has any."""
        for key, paths in source.versions().items():
            for path in paths if key in keys else ():
                name = PurePosixPath(path).name
                self._folder.write(f"{self._folder.path}/pictures/{key}/{name}", source._folder.read(path))

    def remove(self, video_ids: Collection[str], but: Collection[str] = ()) -> None:
        """Delete the pictures of videos, apart from those of the versions `but`."""
        videos = {video_key(video_id) for video_id in video_ids}
        for key, paths in self.versions().items():
            if key.partition("-")[0] in videos and key.partition("-")[2] not in but:
                for path in paths:
                    self._folder.delete(path)

    def nearest(self, video_id: str, version: str, second: float) -> bytes | None:
        """The JPEG of the frame nearest to `second`; None if the video has no pictures, or they cannot be
        read."""
        seconds, jpegs = [], []
        for info in self._folder.list(f"pictures/{video_key(video_id)}-{version}"):
            with suppress(OSError, pa.ArrowException):
                table = pq.read_table(io.BytesIO(self._folder.read(info.path)), schema=_SCHEMA)
                seconds += table["second"].to_pylist()
                jpegs += table["jpeg"].to_pylist()
        if not jpegs:
            return None
        jpeg: bytes = jpegs[int(np.abs(np.array(seconds) - second).argmin())]
        return jpeg

    def _path(self, video_id: str, version: str, name: str) -> str:
        return f"{self._folder.path}/pictures/{video_key(video_id)}-{version}/{name}"
