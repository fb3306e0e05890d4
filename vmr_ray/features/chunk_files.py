"""Reading and writing the chunks of a store. Every read is checked against the chunk's digest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vmr_ray.features.chunks import (
    DamagedError,
    chunk_name,
    chunk_schema,
    chunk_table,
    content_digest,
    matrix,
    row_group,
    values,
)
from vmr_ray.features.folder import StoreFolder
from vmr_ray.schema import Chunk, Video

PARQUET = {
    "compression": "zstd",
    "write_page_checksum": True,
    # A table of one row gains nothing from these.
    "use_dictionary": False,
    "write_statistics": False,
}


class ChunkFiles:
    """The chunks of a store, in files of their own and in packs. `dim` is that of the features."""

    def __init__(self, folder: StoreFolder, dim: int):
        self._folder, self._dim = folder, dim
        self._footer: tuple[str, pq.FileMetaData | None] = ("", None)  # of the pack that was read last

    def write(self, video: Video, chunk: Chunk, features: np.ndarray) -> None:
        """Write one chunk into a file of its own; `features` is [n, dim]."""
        table = chunk_table(video, chunk, features)
        name = chunk_name(video.video_id, video.fingerprint, chunk.index, chunk.last)
        with self._folder.writing(f"{self._folder.path}/chunks/{name[:2]}/{name}.parquet") as stream:
            pq.write_table(table, stream, **PARQUET)

    def read(self, address: str) -> pa.Table:
        """The chunk at `address`: one row of `chunk_schema`.

        Raises:
            DamagedError: it is missing, or not as it was written.
        """
        name = PurePosixPath(address).stem
        with self._damage_at(address):
            table = self._read(address)
            if not table.schema.equals(chunk_schema(self._dim)) or table.num_rows != 1:
                raise ValueError("its columns are not those of a chunk")
            row = values(table)
            if row.pop("digest") != content_digest(row, matrix(table)):
                raise ValueError("its content is not what was written")
            if chunk_name(row["video_id"], row["fingerprint"], row["chunk"], row["last"]) != name:
                raise ValueError(f"it holds chunk {row['chunk']} of {row['video_id']} instead")
        return table

    def video_id(self, address: str) -> str:
        """The video_id in the chunk at `address`; nothing else of it is read or checked.

        Raises:
            DamagedError: it cannot be read.
        """
        with self._damage_at(address):
            return str(self._read(address, ["video_id"])["video_id"][0].as_py())

    @contextmanager
    def _damage_at(self, address: str) -> Iterator[None]:
        """Turn errors of reading the chunk at `address` into a DamagedError."""
        try:
            yield
        except FileNotFoundError:
            raise DamagedError(address, "it is missing", self._folder.root) from None
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            with self._folder.fs.open_input_file(row_group(address)[0]) as stream:
                stream.read(1)  # if the storage itself fails, this raises: the chunk is not damaged
            what = "".join(filter(str.isprintable, " ".join(str(error).split())))
            raise DamagedError(address, what, self._folder.root) from None

    def _read(self, address: str, columns: list[str] | None = None) -> pa.Table:
        path, group = row_group(address)
        known, footer = self._footer
        with (
            self._folder.fs.open_input_file(path) as stream,
            pq.ParquetFile(
                stream,
                metadata=footer if known == path else None,
                page_checksum_verification=True,
                pre_buffer=True,
            ) as file,
        ):
            if path != address:  # the next chunk to be read is often in the same pack
                self._footer = path, file.metadata
            return file.read_row_group(group, columns, use_threads=False)
