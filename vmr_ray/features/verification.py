"""Is a feature store whole? What of it cannot be read, what is unfinished, and what nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmr_ray.features.chunks import DamagedError, Version, as_place, matrix, mend, values
from vmr_ray.features.packs import leftovers
from vmr_ray.features.store import FeatureStore
from vmr_ray.storage import TEMPORARY


@dataclass(frozen=True)
class Problem:
    """What is wrong in a store: at which file (or row group of a pack), what, and what to do about it."""

    where: str
    what: str
    mend: str


@dataclass
class Verification:
    """What a store holds: finished videos, and all chunks and frames that are whole.

    `unfinished` videos lack chunks, as an interrupted `vmr embed` leaves them; the next one embeds them.
    `leftovers` are files that do no harm; `compact` deletes them.
    """

    videos: int = 0
    chunks: int = 0
    frames: int = 0
    unfinished: int = 0
    problems: list[Problem] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def verify(
    root: str | Path, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read and check every chunk of the store at `root`, one at a time.

    Args:
        repair: delete the versions of videos that have a damaged chunk, so that the next `vmr embed`
            embeds them anew. Not while something else changes the store.
        progress: called with the chunks done and the chunks to do.

    Raises:
        VmrError: there is no store.
        OSError: the storage itself is in trouble.
    """
    store = FeatureStore.open(str(root))
    result = Verification()

    def note(error: DamagedError) -> None:
        what_to_do = "deleted: run `vmr embed` again" if repair else mend(store.root)
        result.problems.append(Problem(error.where, error.what, what_to_do))

    packs = []
    for listing in store.listings():
        try:
            packs.append(store.pack(listing))
        except DamagedError as error:
            note(error)
            if repair:
                store.unlink(listing)
    for info in store.infos("chunks"):
        if not as_place(info) and not TEMPORARY.search(info.path):
            text = "its name is not that of a chunk"
            result.problems.append(Problem(info.path, text, "move it out of the store"))
    versions = [(video, v) for video, found in store.versions(packs).items() for v in found]
    versions.sort(key=lambda pair: pair[1].files)  # pack after pack
    total, done = sum(len(version.places) for _, version in versions), 0
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
                store.remove([version])
        done += len(version.places)
        if progress:
            progress(done, total)
    result.videos, result.unfinished = len(finished), len(unfinished)
    result.leftovers = leftovers(store, packs)
    return result


def _frames(store: FeatureStore, version: Version) -> Iterator[int]:
    """How many frames each chunk has, as long as nothing is wrong."""
    before: dict[str, Any] = {}
    for place in version.places:
        table = store.load(place.address)
        row, features = values(table), matrix(table)
        wrong = _wrong(row, features, before)
        if place.video_id not in (None, row["video_id"]):
            wrong = f"the JSON of its pack calls it {place.video_id}"
        if wrong:
            raise DamagedError(place.address, wrong, store.root)
        yield len(features)
        before = row


def _wrong(row: dict[str, Any], features: np.ndarray, before: dict[str, Any]) -> str:
    """What is wrong with a chunk that is as it was written; `before` is the one before it, if any."""
    times, edges = np.array(row["times"], np.float64), np.array(row["edges"], np.float64)
    if not len(times) == len(edges) - 1 == len(features):
        return f"{len(times)} times, {len(edges)} edges and {len(features)} features do not fit"
    if not all(np.isfinite(values).all() for values in (times, edges, features)):
        return "a value is not finite"
    if not (np.diff(edges) > 0).all():
        return "its edges do not increase"
    if before and row["duration"] != before["duration"]:
        return "it tells another duration than the chunk before it"
    if before and row["chunk"] == before["chunk"] + 1 and row["edges"][0] != before["edges"][-1]:
        return "it does not begin where the chunk before it ends"
    return ""
