"""Forgetting videos that are no longer listed, in a folder of feature stores and indexes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from pyarrow import fs

from vmr_ray.features import FeatureStore
from vmr_ray.search.tables import IndexTables
from vmr_ray.storage import filesystem


def forget_unlisted(
    store: FeatureStore,
    out: str,
    listed: Collection[str],
    was_listed: Callable[[str], bool] | None = None,
) -> int:
    """Delete the videos that are not in `listed` from every index OUT/index-*, then from the feature store.

    In this order, because the same call after an interruption finds them by the features. Videos that were
    added to an index by its service have their features elsewhere, and stay.

    Args:
        out: a local directory or an object-storage URI.
        listed: the ids of the videos that stay.
        was_listed: called with the URI of indexed videos that are not in `listed`, returns whether to delete
            them although they have no features; default: none of them.

    Returns:
        The number of videos deleted.

    Raises:
        VmrError: an index cannot be read.
    """
    unlisted = set(store.video_ids()) - set(listed)
    forgotten = set(unlisted)
    for tables in _indexes(out) if unlisted or was_listed else ():
        leftover: set[str] = set()
        if was_listed:
            rows = tables.read_videos(columns=["video_id", "uri"])
            leftover = {r["video_id"] for r in rows if r["video_id"] not in listed and was_listed(r["uri"])}
        tables.forget_videos(unlisted | leftover)
        tables.restore_videos(unlisted | leftover)  # a file that comes back counts as a new one
        forgotten |= leftover
    for video_id in unlisted:
        store.delete(video_id)
    return len(forgotten)


def _indexes(out: str) -> Iterator[IndexTables]:
    """The tables of the indexes in a folder. One that was interrupted before it had any holds no video."""
    filesys, path = filesystem(out)
    for info in filesys.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if info.type == fs.FileType.Directory and info.base_name.startswith("index-"):
            tables = IndexTables.find(f"{out}/{info.base_name}")
            if tables is not None:
                yield tables
