"""Is a feature store whole? Finds what cannot be read, what is unfinished, and what is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmr_ray.features.catalogue import Pack, VideoVersion
from vmr_ray.features.chunks import DamagedError, fix, loose_chunk, matrix, values
from vmr_ray.features.packs import leftovers
from vmr_ray.features.store import FeatureStore
from vmr_ray.storage import TEMPORARY


@dataclass(frozen=True)
class StoreProblem:
    """What is wrong in a store: in which file (or row group of a pack), what, and how to fix it."""

    where: str
    what: str
    fix: str


@dataclass
class Verification:
    """What a store holds: finished videos, and all chunks and frames that are whole.

    `unfinished` videos lack chunks, as after an interrupted `vmr embed`; the next one embeds them.
    `leftovers` are files that do no harm; `compact` deletes them.
    """

    videos: int = 0
    chunks: int = 0
    frames: int = 0
    unfinished: int = 0
    problems: list[StoreProblem] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def verify(
    root: str | Path, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read and check every chunk of the store at `root`, one at a time.

    Args:
        repair: delete the versions of videos that have a damaged chunk, so that the next `vmr embed` embeds
            them again. Nothing else may change the store meanwhile.
        progress: called with the number of chunks checked and the number of chunks to check.

    Raises:
        VmrError: there is no store.
        OSError: the storage itself fails.
    """
    store = FeatureStore.open(str(root))
    result = Verification()

    def note(error: DamagedError) -> None:
        what_to_do = "deleted: run `vmr embed` again" if repair else fix(store.root)
        result.problems.append(StoreProblem(error.where, error.what, what_to_do))

    packs: list[Pack] = []
    for listing in store.catalogue.listings():
        try:
            packs.append(store.catalogue.read_pack(listing))
        except DamagedError as error:
            note(error)
            if repair:
                store.folder.delete(listing)
    for info in store.folder.list("chunks"):
        if not loose_chunk(info) and not TEMPORARY.search(info.path):
            text = "its name is not that of a chunk"
            result.problems.append(StoreProblem(info.path, text, "move it out of the store"))
    versions = [(key, v) for key, of_video in store.catalogue.versions(packs).items() for v in of_video]
    versions.sort(key=lambda pair: pair[1].addresses)  # one pack after the other
    total, done = sum(len(version.chunks) for _, version in versions), 0
    finished: set[str] = set()
    unfinished: set[str] = set()
    for video, version in versions:
        try:
            for frames in _frames(store, version):
                result.chunks += 1
                result.frames += frames
            (finished if version.complete else unfinished).add(video)
        except DamagedError as error:
            note(error)
            if repair:
                store.catalogue.remove([version])
        done += len(version.chunks)
        if progress:
            progress(done, total)
    result.videos, result.unfinished = len(finished), len(unfinished)
    result.leftovers = leftovers(store, packs)
    return result


def _frames(store: FeatureStore, version: VideoVersion) -> Iterator[int]:
    """The number of frames of each chunk.

    Raises:
        DamagedError: a chunk is damaged, or does not fit the one before it.
    """
    before: dict[str, Any] = {}
    for chunk in version.chunks:
        table = store.chunks.read(chunk.address)
        row, features = values(table), matrix(table)
        damage = _damage(row, features, before)
        if chunk.video_id not in (None, row["video_id"]):
            damage = f"the JSON of its pack calls it {chunk.video_id}"
        if damage:
            raise DamagedError(chunk.address, damage, store.root)
        yield len(features)
        before = row


def _damage(row: dict[str, Any], features: np.ndarray, before: dict[str, Any]) -> str:
    """What makes no sense in a chunk that is as it was written; `before` is the chunk before it, or empty."""
    times, edges = np.array(row["times"], np.float64), np.array(row["edges"], np.float64)
    if not len(times) == len(edges) - 1 == len(features):
        return f"{len(times)} times, {len(edges)} edges and {len(features)} features do not fit"
    if not all(np.isfinite(values).all() for values in (times, edges, features)):
        return "a value is not finite"
    if not (np.diff(edges) > 0).all():
        return "its edges do not increase"
    if before and row["duration"] != before["duration"]:
        return "its duration differs from that of the chunk before it"
    if before and row["chunk"] == before["chunk"] + 1 and row["edges"][0] != before["edges"][-1]:
        return "it does not begin where the chunk before it ends"
    return ""
