"""Many small files -> few big ones: the chunks of finished videos move into packs.

Killed at any moment, the store reads as before: a pack counts once its JSON is there, and what it replaces
is deleted after that. What a kill leaves behind the next call deletes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from vmr_ray.features.chunks import PARQUET, Pack, Place, Version, as_place, chunk_schema
from vmr_ray.features.store import FeatureStore
from vmr_ray.storage import TEMPORARY, short_hash

_OLD = 3600  # s; a younger temporary file may still be written


@dataclass(frozen=True)
class Compaction:
    """What `compact` did: how many files the store had and has, and the videos and bytes it packed."""

    files_before: int
    files_after: int
    videos: int
    bytes: int


def compact(
    root: str | Path, target_mb: float = 256, progress: Callable[[int, int], None] | None = None
) -> Compaction:
    """Pack the chunks of all finished videos into files of about `target_mb` MB; the rest stays as it is.

    Packs that are small, or more than half deleted, are packed anew. `vmr embed` may run meanwhile, but
    nothing that reads features, and no second `compact`.

    Args:
        progress: called with the chunks packed and the chunks to pack.

    Raises:
        VmrError: there is no store, or a chunk in it is damaged.
    """
    store = FeatureStore.open(str(root))
    target = target_mb * 2**20
    before = len(store.infos(""))
    packs = store.packs()
    newest = store.newest()
    settled = _settled(packs, newest.values(), target)
    moving = {name: version for name, version in newest.items() if version.places[0].file not in settled}
    total = sum(len(version.places) for version in moving.values())
    same = {tuple(place and place.name for place in pack.places): pack.path for pack in packs}
    kept = set(settled)
    number = 1 + max((pack.number for pack in packs), default=0)
    packed: list[Place] = []
    for group in _groups(moving, target):
        names = tuple(place.name for place in group)
        path = same.get(names) or f"{store.path}/packs/{number:05d}-{short_hash(' '.join(names), 16)}.parquet"
        kept.add(path)
        if names not in same:
            with (
                store.writing(path) as stream,
                pq.ParquetWriter(stream, chunk_schema(store.spec.dim), **PARQUET) as writer,
            ):
                for place in group:
                    writer.write_table(store.load(place.address))
                    packed.append(place)
                    if progress:
                        progress(len(packed), total)
            store.write_pack(Pack(path, number, tuple(group)))
        for place in group:
            if not place.packed:
                store.unlink(place.address)
    for pack in packs:
        if pack.path not in kept:
            store.unlink(pack.listing)  # first: without it there is no pack
            store.unlink(pack.path)
    for path in leftovers(store, store.packs()):
        store.unlink(path)
    return Compaction(
        files_before=before,
        files_after=len(store.infos("")),
        videos=len({place.video_id for place in packed}),
        bytes=sum(place.size for place in packed),
    )


def _settled(packs: list[Pack], newest: Iterable[Version], target: float) -> set[str]:
    """The paths of the packs that are big enough and of which at least half is still in use."""
    used: dict[str, list[int]] = defaultdict(list)
    for version in newest:
        for place in version.places:
            used[place.file].append(place.size)
    return {
        pack.path
        for pack in packs
        if sum(used[pack.path]) >= target / 2 and 2 * len(used[pack.path]) >= len(pack.places)
    }


def _groups(videos: dict[str, Version], target: float) -> Iterator[list[Place]]:
    """The chunks of each pack; a video is never divided, and neighbours are read together."""
    group: list[Place] = []
    size = 0
    for video_id, version in videos.items():
        group += [replace(place, video_id=video_id) for place in version.places]
        size += sum(place.size for place in version.places)
        if size >= target:
            yield group
            group, size = [], 0
    if group:
        yield group


def leftovers(store: FeatureStore, packs: Iterable[Pack]) -> list[str]:
    """Files that nobody needs, in the order to delete them; `packs` are the store's.

    Temporary files of interrupted writes, packs that newer ones replace or that never got their JSON, and
    the own files of packed chunks.
    """
    infos = {info.path: info for info in store.infos("")}
    before = time.time_ns() - _OLD * 10**9
    found = [path for path, i in infos.items() if TEMPORARY.search(path) and (i.mtime_ns or 0) < before]
    packed: set[str] = set()
    for pack in sorted(packs, key=lambda pack: -pack.number):
        if not pack.names - packed:
            found += [path for path in (pack.listing, pack.path) if path in infos]
        packed |= pack.names
    for path, info in infos.items():
        place, stem = as_place(info), path.removesuffix(".parquet")
        orphan = path != stem and path.startswith(f"{store.path}/packs/") and f"{stem}.json" not in infos
        if orphan or (place and place.name in packed):
            found.append(path)
    return found
