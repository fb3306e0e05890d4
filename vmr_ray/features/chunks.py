"""What a chunk of features is: its name, its columns, its digest, and where it lies in a store."""

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
from vmr_ray.schema import feature_schema
from vmr_ray.storage import short_hash

PARQUET = {
    "compression": "zstd",
    "write_page_checksum": True,
    # One row gains nothing from these.
    "use_dictionary": False,
    "write_statistics": False,
}
NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-([0-9]{5,})(-last)?")


class DamagedError(VmrError):
    """A file of the store is not as it was written: `where` names it, `what` says what is wrong."""

    def __init__(self, where: str, what: str, root: str):
        super().__init__(where, what, root)
        self.where, self.what, self.root = where, what, root

    def __str__(self) -> str:
        return f"{self.where} is damaged ({self.what}): {mend(self.root)}"


def mend(root: str) -> str:
    """What to do about a damaged chunk or pack."""
    return f"run `vmr features verify {root} --repair`, then `vmr embed` again"


@dataclass(frozen=True)
class Place:
    """Where one chunk lies.

    `address` is its file's path, or `<pack>.parquet#<row group>/<name>`. `mtime` (ns) and `size` (bytes)
    are those of the file that it has, or had before it was packed; `video_id` is known once it is packed.
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


@dataclass(frozen=True)
class Pack:
    """The pack at `path` (of its Parquet file): a chunk for each row group, None once it was deleted.

    Of two copies of a chunk the one in the pack of the higher number counts.
    """

    path: str
    number: int
    places: tuple[Place | None, ...]

    @property
    def listing(self) -> str:
        """The path of its JSON file."""
        return f"{self.path.removesuffix('.parquet')}.json"

    @property
    def names(self) -> set[str]:
        return {place.name for place in self.places if place}


@dataclass(frozen=True)
class Version:
    """One version of one video: where its chunks lie, in order, and all copies of them."""

    version: str
    places: tuple[Place, ...]
    copies: tuple[Place, ...]
    complete: bool

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(place.address for place in self.places)

    @property
    def mtime(self) -> int:
        return max(place.mtime for place in self.places)


def chunk_schema(dim: int) -> pa.Schema:
    """What a chunk is stored as: the features' schema and a digest of the rest."""
    return feature_schema(dim).append(pa.field("digest", pa.string(), nullable=False))


def chunk_name(video_id: str, fingerprint: str, index: int, last: bool) -> str:
    return f"{short_hash(video_id, 16)}-{short_hash(fingerprint, 8)}-{index:05d}{'-last' * last}"


def as_place(info: fs.FileInfo) -> Place | None:
    """A chunk in a file of its own, or None if the file's name is not that of a chunk."""
    name = PurePosixPath(info.path)
    if name.suffix != ".parquet" or not NAME.fullmatch(name.stem):
        return None
    return Place(name.stem, info.path, info.mtime_ns or 0, info.size or 0)


def values(table: pa.Table) -> dict[str, Any]:
    """What a chunk holds, without the features."""
    row: dict[str, Any] = table.drop_columns(["features"]).to_pylist()[0]
    return row


def matrix(table: pa.Table) -> np.ndarray:
    """The features of a chunk, float16 [n, dim]."""
    frames = table["features"].combine_chunks().flatten()
    dim = frames.type.list_size
    return frames.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)


def content_digest(row: dict[str, Any], features: np.ndarray) -> str:
    """A digest of all that a chunk holds, however it is encoded."""
    digest = hashlib.sha256(repr(row).encode())
    digest.update(np.ascontiguousarray(features).data)
    return digest.hexdigest()


def row_group(address: str) -> tuple[str, int]:
    """The Parquet file and the row group at the address of a chunk."""
    if address.endswith(".parquet"):
        return address, 0
    path, _, group = address.rpartition("/")[0].rpartition("#")
    return path, int(group)
