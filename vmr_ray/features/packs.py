"""Many small files -> few big ones: the chunks of finished videos move into packs.

If it is killed at any moment, the store reads as before: a pack counts once its JSON exists, and the files
it replaces are deleted after that. The next call deletes what a kill left behind.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from vmr_ray.features.catalogue import Pack, VideoVersion
from vmr_ray.features.chunk_files import PARQUET
from vmr_ray.features.chunks import StoredChunk, chunk_schema, loose_chunk
from vmr_ray.features.store import FeatureStore
from vmr_ray.storage import TEMPORARY, short_hash

_OLD = 3600  # seconds; a younger temporary file may still be written


@dataclass(frozen=True)
class Compaction:
    """What `compact` did: the number of files before and after, and the videos and bytes it packed."""

    files_before: int
    files_after: int
    videos: int
    bytes: int


def compact(
    root: str | Path, target_mb: float = 256, progress: Callable[[int, int], None] | None = None
) -> Compaction:
    """Pack the chunks of all finished videos into files of about `target_mb` MB; the rest stays as it is.

    Packs that are small, or more than half deleted, are packed again. `vmr embed` may run at the same time,
    but nothing that reads features, and no second `compact`.

    Args:
        progress: called with the number of chunks packed and the number of chunks to pack.

    Raises:
        VmrError: there is no store, or a chunk in it is damaged.
    """
    store = FeatureStore.open(str(root))
    target = target_mb * 2**20
    files_before = len(store.folder.list())
    packs = store.catalogue.packs()
    newest = store.newest()
    kept = _settled(packs, newest.values(), target)
    moving = {name: version for name, version in newest.items() if version.chunks[0].file not in kept}
    total = sum(len(version.chunks) for version in moving.values())
    pack_of = {tuple(chunk and chunk.name for chunk in pack.chunks): pack.path for pack in packs}
    number = 1 + max((pack.number for pack in packs), default=0)
    packed: list[StoredChunk] = []

    def count(chunk: StoredChunk) -> None:
        packed.append(chunk)
        if progress:
            progress(len(packed), total)

    for group in _groups(moving, target):
        names = tuple(chunk.name for chunk in group)
        if (path := pack_of.get(names)) is None:
            path = f"{store.folder.path}/packs/{number:05d}-{short_hash(' '.join(names), 16)}.parquet"
            _write_pack(store, Pack(path, number, tuple(group)), group, count)
        kept.add(path)
        for chunk in group:
            if not chunk.packed:
                store.folder.delete(chunk.address)
    for pack in packs:
        if pack.path not in kept:
            store.folder.delete(pack.listing)  # first, because without its JSON there is no pack
            store.folder.delete(pack.path)
    for path in leftovers(store, store.catalogue.packs()):
        store.folder.delete(path)
    return Compaction(
        files_before=files_before,
        files_after=len(store.folder.list()),
        videos=len({chunk.video_id for chunk in packed}),
        bytes=sum(chunk.size for chunk in packed),
    )


def _write_pack(
    store: FeatureStore, pack: Pack, chunks: Iterable[StoredChunk], written: Callable[[StoredChunk], None]
) -> None:
    """Write a pack's Parquet file, then its JSON; `written` is called with each chunk in the file."""
    with (
        store.folder.writing(pack.path) as stream,
        pq.ParquetWriter(stream, chunk_schema(store.spec.dim), **PARQUET) as writer,
    ):
        for chunk in chunks:
            writer.write_table(store.chunks.read(chunk.address))
            written(chunk)
    store.catalogue.write_pack(pack)


def _settled(packs: list[Pack], newest: Iterable[VideoVersion], target: float) -> set[str]:
    """The paths of the packs that are big enough and at least half of whose chunks are still in use."""
    used: dict[str, list[int]] = defaultdict(list)
    for version in newest:
        for chunk in version.chunks:
            used[chunk.file].append(chunk.size)
    return {
        pack.path
        for pack in packs
        if sum(used[pack.path]) >= target / 2 and 2 * len(used[pack.path]) >= len(pack.chunks)
    }


def _groups(videos: dict[str, VideoVersion], target: float) -> Iterator[list[StoredChunk]]:
    """The chunks of each pack. A video's chunks stay together, in order, because they are read together."""
    group: list[StoredChunk] = []
    size = 0
    for video_id, version in videos.items():
        group += [replace(chunk, video_id=video_id) for chunk in version.chunks]
        size += sum(chunk.size for chunk in version.chunks)
        if size >= target:
            yield group
            group, size = [], 0
    if group:
        yield group


def leftovers(store: FeatureStore, packs: Iterable[Pack]) -> list[str]:
    """Files that are not needed, in the order to delete them; `packs` are all packs of the store.

    These are temporary files of interrupted writes, packs that newer ones replace or whose JSON was never
    written, and the own files of packed chunks.
    """
    infos = {info.path: info for info in store.folder.list()}
    before = time.time_ns() - _OLD * 10**9
    unneeded = [path for path, i in infos.items() if TEMPORARY.search(path) and (i.mtime_ns or 0) < before]
    packed: set[str] = set()
    for pack in sorted(packs, key=lambda pack: -pack.number):
        if not pack.names - packed:
            unneeded += [path for path in (pack.listing, pack.path) if path in infos]
        packed |= pack.names
    for path, info in infos.items():
        chunk, stem = loose_chunk(info), path.removesuffix(".parquet")
        in_packs = path != stem and path.startswith(f"{store.folder.path}/packs/")
        if (in_packs and f"{stem}.json" not in infos) or (chunk and chunk.name in packed):
            unneeded.append(path)
    return unneeded
