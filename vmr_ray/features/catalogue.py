"""Which versions of which videos a store has, and where their chunks are: in files or in packs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from vmr_ray.features.chunks import NAME, DamagedError, StoredChunk, loose_chunk
from vmr_ray.features.folder import StoreFolder

THREADS = 16  # files read at a time: object storage answers slowly, but to many requests at once


@dataclass(frozen=True)
class Pack:
    """The pack at `path` (of its Parquet file): a chunk for each row group, None once it is deleted.

    If a chunk is in several packs, the pack with the highest number counts.
    """

    path: str
    number: int
    chunks: tuple[StoredChunk | None, ...]

    @property
    def listing(self) -> str:
        """The path of its JSON file."""
        return f"{self.path.removesuffix('.parquet')}.json"

    @property
    def names(self) -> set[str]:
        return {chunk.name for chunk in self.chunks if chunk}


@dataclass(frozen=True)
class VideoVersion:
    """The chunks of one version of one video in order, and all their copies (in files and packs).

    `version` is the `version_key` of the fingerprint that the video's file had.
    """

    version: str
    chunks: tuple[StoredChunk, ...]
    copies: tuple[StoredChunk, ...]
    complete: bool

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(chunk.address for chunk in self.chunks)

    @property
    def mtime(self) -> int:
        """When its last chunk was written (ns)."""
        return max(chunk.mtime for chunk in self.chunks)


class Catalogue:
    """Lists and deletes versions of videos, and reads and writes the packs' JSON."""

    def __init__(self, folder: StoreFolder):
        self._folder = folder

    def versions(self, packs: Iterable[Pack] | None = None) -> dict[str, list[VideoVersion]]:
        """video_key -> the versions of the video that have a chunk in a file or in `packs` (default: all)."""
        # Files before packs: a chunk that is being packed is then found twice rather than not at all.
        loose = [chunk for info in self._folder.list("chunks") if (chunk := loose_chunk(info))]
        packs = self.packs() if packs is None else packs
        copies: dict[str, list[StoredChunk]] = defaultdict(list)
        for pack in sorted(packs, key=lambda pack: -pack.number):
            for chunk in filter(None, pack.chunks):
                copies[chunk.name].append(chunk)
        for chunk in loose:
            copies[chunk.name].append(chunk)
        chunks_of: dict[tuple[str, str], list[tuple[int, bool, str]]] = defaultdict(list)
        for name in copies:
            video, version, index, *last = name.split("-")
            chunks_of[video, version].append((int(index), bool(last), name))
        versions: dict[str, list[VideoVersion]] = defaultdict(list)
        for (video, version), chunks in chunks_of.items():
            chunks.sort()
            complete = [(i, i == len(chunks) - 1) for i in range(len(chunks))]
            versions[video].append(
                VideoVersion(
                    version,
                    chunks=tuple(copies[name][0] for *_, name in chunks),
                    copies=tuple(copy for *_, name in chunks for copy in copies[name]),
                    complete=[(index, last) for index, last, _ in chunks] == complete,
                )
            )
        return versions

    def remove(self, versions: Iterable[VideoVersion]) -> None:
        """Delete all copies of these versions: files at once, packed chunks from their pack's JSON."""
        packed: dict[str, set[str]] = defaultdict(set)
        for chunk in (chunk for version in versions for chunk in version.copies):
            if chunk.packed:
                packed[chunk.file].add(chunk.name)
            else:
                self._folder.delete(chunk.address)
        for path, names in packed.items():
            with suppress(FileNotFoundError):  # another process has compacted the store
                pack = self.read_pack(f"{path.removesuffix('.parquet')}.json")
                kept = (chunk if chunk and chunk.name not in names else None for chunk in pack.chunks)
                self.write_pack(replace(pack, chunks=tuple(kept)))

    def packs(self) -> list[Pack]:
        """All packs.

        Raises:
            DamagedError: the JSON of one is damaged.
        """
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                return list(pool.map(self.read_pack, self.listings()))
        except FileNotFoundError:  # another process has compacted the store
            return self.packs()

    def listings(self) -> list[str]:
        """The paths of the packs' JSON files."""
        return [info.path for info in self._folder.list("packs") if info.path.endswith(".json")]

    def read_pack(self, listing: str) -> Pack:
        """Read a pack's JSON.

        Raises:
            DamagedError: it is damaged.
            FileNotFoundError: it does not exist.
        """
        text = self._folder.read(listing)
        path = f"{listing.removesuffix('.json')}.parquet"
        try:
            chunks = [
                chunk and StoredChunk(chunk[0], f"{path}#{group}/{chunk[0]}", *chunk[1:])
                for group, chunk in enumerate(json.loads(text)["chunks"])
            ]
            if not all(NAME.fullmatch(chunk.name) for chunk in chunks if chunk):
                raise ValueError
            return Pack(path, int(PurePosixPath(path).name.split("-")[0]), tuple(chunks))
        except (ValueError, TypeError, LookupError):
            raise DamagedError(listing, "it is not the JSON of a pack", self._folder.root) from None

    def write_pack(self, pack: Pack) -> None:
        """Write a pack's JSON, after its Parquet file: a pack exists once its JSON does."""
        chunks = [chunk and (chunk.name, chunk.mtime, chunk.size, chunk.video_id) for chunk in pack.chunks]
        self._folder.write(pack.listing, json.dumps({"chunks": chunks}).encode())
