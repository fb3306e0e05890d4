"""The stored chunk: its columns, its file name, its digest, and its address in a store."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from vmr_ray.errors import VmrError
from vmr_ray.schema import Chunk, Video
from vmr_ray.storage import short_hash

# The columns of a chunk without its features: one row is one chunk. Names and order are the file format.
COLUMNS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("partial", pa.bool_(), nullable=False),
        pa.field("times", pa.list_(pa.float64()), nullable=False),
        pa.field("edges", pa.list_(pa.float64()), nullable=False),
    ]
)
NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-([0-9]{5,})(-last)?")


class DamagedError(VmrError):
    """A file of the store is not as it was written: `where` names it, `what` is the damage."""

    def __init__(self, where: str, what: str, root: str):
        super().__init__(where, what, root)
        self.where, self.what, self.root = where, what, root

    def __str__(self) -> str:
        return f"{self.where} is damaged ({self.what}): {fix(self.root)}"


def fix(root: str) -> str:
    """What to do about a damaged chunk or pack."""
    return f"run `vmr features verify {root} --repair`, then `vmr embed` again"


@dataclass(frozen=True)
class StoredChunk:
    """Where one chunk is stored.

    `address` is the path of its own file, or `<pack>.parquet#<row group>/<name>`. `mtime` (ns) and `size`
    (bytes) are those of its own file, also after it was packed; `video_id` is known once it is packed.
    """

    name: str
    address: str
    mtime: int
    size: int
    video_id: str | None = None

    @property
    def file(self) -> str:
        """The Parquet file: the chunk's own, or a pack."""
        return row_group(self.address)[0]

    @property
    def packed(self) -> bool:
        return self.file != self.address


def chunk_schema(dim: int) -> pa.Schema:
    """The columns of a stored chunk: COLUMNS, the features, and a digest of both."""
    features = pa.field("features", pa.list_(pa.list_(pa.float16(), dim)), nullable=False)
    return COLUMNS.append(features).append(pa.field("digest", pa.string(), nullable=False))


def chunk_row(video: Video, chunk: Chunk) -> dict[str, Any]:
    """COLUMNS of one chunk."""
    return {
        "video_id": video.video_id,
        "chunk": chunk.index,
        "last": chunk.last,
        "uri": video.uri,
        "fingerprint": video.fingerprint,
        "duration": chunk.duration,
        "partial": bool(chunk.damage),
        "times": chunk.times,
        "edges": chunk.edges,
    }


def chunk_table(video: Video, chunk: Chunk, features: np.ndarray) -> pa.Table:
    """The chunk as it is stored; `features` [n, dim] become float16."""
    dim = features.shape[1]
    flat = pa.array(np.ascontiguousarray(features, dtype=np.float16).reshape(-1), pa.float16())
    frames = pa.FixedSizeListArray.from_arrays(flat, dim)
    schema = chunk_schema(dim)
    row = chunk_row(video, chunk)
    columns = [pa.array([row[field.name]], field.type) for field in COLUMNS]
    columns.append(pa.ListArray.from_arrays(pa.array([0, len(frames)], pa.int32()), frames))
    table = pa.table(columns, schema=schema.remove(len(schema) - 1))
    digest = pa.array([content_digest(values(table), matrix(table))])
    return pa.table([*table.columns, digest], schema=schema)


def chunk_name(video_id: str, fingerprint: str, index: int, last: bool) -> str:
    """The file name of a chunk, without its suffix."""
    return f"{video_key(video_id)}-{version_key(fingerprint)}-{index:05d}{'-last' * last}"


def video_key(video_id: str) -> str:
    """What file names contain instead of a video's id."""
    return short_hash(video_id, 16)


def version_key(fingerprint: str) -> str:
    """What file names contain instead of the fingerprint of a video's file."""
    return short_hash(fingerprint, 8)


def loose_chunk(info: fs.FileInfo) -> StoredChunk | None:
    """The chunk in a file of its own, or None if the file's name is not that of a chunk."""
    name = PurePosixPath(info.path)
    if name.suffix != ".parquet" or not NAME.fullmatch(name.stem):
        return None
    return StoredChunk(name.stem, info.path, info.mtime_ns or 0, info.size or 0)


def values(table: pa.Table) -> dict[str, Any]:
    """The row of a chunk, without its features."""
    row: dict[str, Any] = table.drop_columns(["features"]).to_pylist()[0]
    return row


def matrix(table: pa.Table) -> np.ndarray:
    """The features of a chunk, float16 [n, dim]."""
    frames = table["features"].combine_chunks().flatten()
    dim = frames.type.list_size
    return frames.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)


def content_digest(row: dict[str, Any], features: np.ndarray) -> str:
    """A digest of a chunk's values; it does not depend on how Parquet encodes them."""
    digest = hashlib.sha256(repr(row).encode())
    digest.update(np.ascontiguousarray(features).data)
    return digest.hexdigest()


def row_group(address: str) -> tuple[str, int]:
    """The Parquet file and the row group at the address of a chunk."""
    if address.endswith(".parquet"):
        return address, 0
    path, _, group = address.rpartition("/")[0].rpartition("#")
    return path, int(group)
