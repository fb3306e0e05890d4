"""The LanceDB tables of an index. No other module calls LanceDB.

INDEX/videos.lance      one row a video
INDEX/windows.lance     one row a window: the network's cached states, which stage 2 reads
INDEX/segments.lance    one row a short segment: the unit vectors that stage 1 searches
INDEX/deleted.lance     ids of deleted videos, which are indexed again only when they are named

Each write to one table is atomic, but no transaction spans several. So the row in `videos` decides: only
windows and segments of the version that it names count. It is written last and deleted first, and replaced
in one write. So a call that is killed at any moment has either not begun or is done, as far as searches and
lists show. The rows that it leaves are not searched, and `sweep` deletes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa

from vmr_ray.config import IndexConfig
from vmr_ray.errors import VmrError, full_disk, one_line
from vmr_ray.features.pictures import Pictures
from vmr_ray.search.conditions import where, where_in
from vmr_ray.search.result import Filter
from vmr_ray.storage import is_remote

VIDEO_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),  # FeatureStore.version, and `.N` after N changes of the metadata
        ("metadata", pa.string()),  # JSON object
        ("duration", pa.float64()),  # seconds
        ("frames", pa.int64()),
        ("partial", pa.bool_()),
    ]
)
WINDOW_SCHEMA = pa.schema(
    [
        ("window_id", pa.string()),  # first frame:version:video_id
        ("video_id", pa.string()),
        ("edges", pa.list_(pa.float64())),  # [T+1] seconds
        ("states", pa.large_binary()),  # float16 [T, dim]
        ("core", pa.list_(pa.int64())),  # [low, high): the frames whose moments this window answers for
    ]
)
_DELETED_SCHEMA = pa.schema([("video_id", pa.string())])
_IDS_PER_DELETE = 500
_OPTIMIZE_ATTEMPTS = 3

Method = TypeVar("Method", bound=Callable[..., Any])


def segment_schema(dim: int) -> pa.Schema:
    """The schema of the segments, whose vectors have `dim` numbers."""
    return pa.schema(
        [
            ("vector", pa.list_(pa.float32(), dim)),
            ("video_id", pa.string()),
            ("window_id", pa.string()),
            ("tags", pa.list_(pa.string())),  # the video's metadata, one `tag` a field
            ("start", pa.float64()),  # seconds
            ("end", pa.float64()),
        ]
    )


@contextmanager
def _writing(index: str) -> Iterator[None]:
    """Turns LanceDB's errors of the storage into a VmrError."""
    try:
        yield
    except RuntimeError as error:
        if "LanceError(IO)" not in str(error):
            raise
        if "No space left on device" in str(error) or "os error 28" in str(error):
            raise full_disk(index) from error
        raise VmrError(f"cannot write {index} ({one_line(error, 200)}): do the same again") from error


def _writes(method: Method) -> Method:
    """A method of `IndexTables` whose errors of the storage are VmrErrors."""

    @wraps(method)
    def call(self: IndexTables, *args: Any, **kwargs: Any) -> Any:
        with _writing(str(self.videos.uri).rpartition("/")[0]):
            return method(self, *args, **kwargs)

    return cast("Method", call)


class SegmentRows(NamedTuple):
    """N segments: `window_ids` [N], `video_ids` [N] and `vectors` float32 [N, dim]."""

    window_ids: np.ndarray
    video_ids: np.ndarray
    vectors: np.ndarray


class IndexTables:
    """The tables of one index. Every read sees what other processes have written until then."""

    def __init__(self, videos: Any, windows: Any, segments: Any, deleted: Any):
        self.videos, self.windows, self.segments, self.deleted = videos, windows, segments, deleted

    @classmethod
    def open(cls, index: str) -> IndexTables:
        """The tables of an existing index.

        Raises:
            VmrError: there is no index, or it cannot be read.
        """
        if tables := cls.find(index):
            return tables
        raise VmrError(
            f"no index at {index}: make one with `vmr index FEATURES --checkpoint RUN/best --out {index}`"
        )

    @classmethod
    def find(cls, index: str) -> IndexTables | None:
        """As `open`, but None if there is no index, or an interrupted call has not created all tables."""
        try:
            connection = _connect(index)
            return cls(
                *(connection.open_table(name) for name in ("videos", "windows", "segments", "deleted"))
            )
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) or "was not found" in str(error):
                return None
            raise VmrError(f"cannot read the index {index}: {one_line(error)}") from None

    @classmethod
    def create(cls, index: str, dim: int) -> IndexTables:
        """The tables of the index, created where they are missing; segment vectors have `dim` numbers."""
        connection = _connect(index)
        schemas = {
            "videos": VIDEO_SCHEMA,
            "windows": WINDOW_SCHEMA,
            "segments": segment_schema(dim),
            "deleted": _DELETED_SCHEMA,
        }
        with _writing(index):
            return cls(
                *(connection.create_table(name, schema=s, exist_ok=True) for name, s in schemas.items())
            )

    # -- reading ---------------------------------------------------------------------------------

    def read_videos(
        self, video_ids: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of these videos (default: of all), in no particular order. Unknown ids have none."""
        if video_ids is not None and not video_ids:
            return []
        search = self.videos.search()
        if video_ids is not None:
            search = search.where(where_in("video_id", video_ids))
        if columns is not None:
            search = search.select(list(columns))
        return list(search.limit(None).to_arrow().to_pylist())

    def video_ids(self) -> list[str]:
        """The ids of all videos."""
        return [row["video_id"] for row in self.read_videos(columns=["video_id"])]

    def videos_version(self) -> int:
        """The version of the table of videos: another one after each change."""
        return int(self.videos.version)

    def has_video(self, video_id: str) -> bool:
        return bool(self.videos.count_rows(where_in("video_id", [video_id])))

    def has_uri(self, uri: str) -> bool:
        """Whether a video was made of this file."""
        return bool(self.videos.count_rows(where_in("uri", [uri])))

    def deleted_ids(self) -> set[str]:
        """The ids of the videos that were deleted and not indexed again."""
        return set(self.deleted.search().limit(None).to_arrow()["video_id"].to_pylist())

    def read_windows(self, window_ids: Collection[str]) -> list[dict[str, Any]]:
        """The rows of these windows, in no particular order. Unknown ids have none."""
        search = self.windows.search().where(where_in("window_id", window_ids))
        return list(search.limit(len(window_ids)).to_arrow().to_pylist())

    def count_windows(self, video_ids: Collection[str] | None = None, filter: Filter | None = None) -> int:
        """How many windows a search looks through; in a part of the index estimated from its segments."""
        windows = int(self.windows.count_rows())
        condition = where(video_ids, filter)
        if condition is None:
            return windows
        return round(windows * self.segments.count_rows(condition) / max(1, self.segments.count_rows()))

    def read_segments(self, video_ids: Collection[str], limit: int) -> SegmentRows | None:
        """All segments of these videos; None if there are more than `limit`."""
        search = self.segments.search().where(where_in("video_id", sorted(video_ids)))
        table = search.select(["window_id", "video_id", "vector"]).limit(limit + 1).to_arrow()
        if len(table) > limit:
            return None
        vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return SegmentRows(
            table["window_id"].to_numpy(),
            table["video_id"].to_numpy(),
            vectors.reshape(len(table), -1 if len(table) else 1),
        )

    def nearest_windows(
        self,
        vector: np.ndarray,
        limit: int,
        partitions: int,
        video_ids: Collection[str] | None = None,
        filter: Filter | None = None,
    ) -> list[str]:
        """The ids of the windows that hold the `limit` segments nearest to `vector` [dim], nearest first.

        Args:
            partitions: how many partitions of the vector index are looked into.
            video_ids: search these videos only.
            filter: search only videos whose metadata matches.
        """
        search = self.segments.search(vector.astype(np.float32)).distance_type("dot")
        if video_ids is not None:
            search = search.bypass_vector_index()  # these are few enough to compare every segment
        elif filter:
            # Look into more partitions as long as the filter leaves too few segments.
            search = search.minimum_nprobes(partitions).maximum_nprobes(0)
        else:
            search = search.nprobes(partitions)
        if condition := where(video_ids, filter):
            search = search.where(condition, prefilter=True)
        nearest = search.select(["window_id", "_distance"]).limit(limit).to_arrow()
        return list(dict.fromkeys(nearest["window_id"].to_pylist()))

    # -- writing ---------------------------------------------------------------------------------

    @_writes
    def add(self, videos: pa.Table, windows: pa.Table, segments: pa.Table) -> None:
        """Append rows of windows and segments; then make `videos` searchable, in place of older versions.

        A video's row comes with or after the last of its windows.
        """
        self.windows.add(windows)
        self.segments.add(segments)
        if not videos.num_rows:
            return
        ids = videos["video_id"].to_pylist()
        self.restore_videos(ids)
        replaced = {row["video_id"] for row in self.read_videos(ids, ["video_id"])}
        upsert = self.videos.merge_insert("video_id").when_matched_update_all()
        upsert.when_not_matched_insert_all().execute(videos)
        if replaced:
            self._delete_uncounted(replaced)

    @_writes
    def delete_videos(self, video_ids: Collection[str]) -> None:
        """Delete videos for good: `build_index` adds them again only if they are named.

        Deleting a video again does nothing, or completes a call that was interrupted.

        Raises:
            VmrError: a video is not in the index and never was.
        """
        ids, deleted = set(video_ids), self.deleted_ids()
        known = {row["video_id"] for row in self.read_videos(ids, ["video_id"])} | deleted
        if missing := sorted(ids - known):
            raise VmrError(f"the video {missing[0]!r} is not in the index: see the list of videos")
        # This record goes first, so that `vmr index` does not restore what an interrupted call half deleted.
        if new := sorted(ids - deleted):
            self.deleted.add(pa.table({"video_id": pa.array(new)}))
        self.forget_videos(ids)

    @_writes
    def forget_videos(self, video_ids: Iterable[str]) -> None:
        """Delete all rows of videos; `build_index` adds them again once they have features."""
        ids = list(video_ids)
        for table in (self.videos, self.segments, self.windows):
            _deletewhere_in(table, "video_id", ids)
        if not is_remote(uri := str(self.videos.uri)):
            Pictures(uri.rpartition("/")[0]).remove(ids)

    @_writes
    def sweep(self) -> None:
        """Complete what interrupted calls have left. Only for the one process that writes to the index."""
        self.forget_videos(self.deleted_ids() & set(self.video_ids()))
        self._delete_uncounted()

    def _delete_uncounted(self, video_ids: Collection[str] | None = None) -> None:
        """Delete windows and segments (of these videos) of other versions than the one in the video's row."""
        rows = self.read_videos(video_ids, ["video_id", "version"])
        counted = {f"{row['version']}:{row['video_id']}" for row in rows}
        for table in (self.segments, self.windows):
            search = table.search().select(["window_id"])
            if video_ids is not None:
                search = search.where(where_in("video_id", video_ids))
            ids = search.limit(None).to_arrow()["window_id"].unique().to_pylist()
            _deletewhere_in(table, "window_id", [i for i in ids if version_of(i) not in counted])

    @_writes
    def restore_videos(self, video_ids: Iterable[str]) -> None:
        """Take videos off the list of deleted ones."""
        if restored := self.deleted_ids() & set(video_ids):
            self.deleted.delete(where_in("video_id", restored))

    @_writes
    def optimize(self, config: IndexConfig) -> None:
        """Merge small files, create the indexes that search needs, and take new rows into them."""
        if "window_id" not in _indexed_columns(self.windows):
            self.windows.create_scalar_index("window_id")
        if "video_id" not in _indexed_columns(self.segments):
            self.segments.create_scalar_index("video_id")
            self.segments.create_scalar_index("tags", index_type="LABEL_LIST")
        self.add_vector_index(self.segments, config)
        for table in (self.videos, self.windows, self.segments, self.deleted):
            _optimize(table)

    @staticmethod
    def add_vector_index(segments: Any, config: IndexConfig) -> None:
        """Index the vectors of a table of segments if it has many rows; again each time they have doubled."""
        from lancedb.index import IvfSq

        rows = segments.count_rows()
        wanted = max(1, rows // config.partition_rows)
        # LanceDB does not report the number of partitions, so the name of the vector index holds it.
        names = [index.name for index in segments.list_indices() if index.name.startswith("ivf_")]
        current = max((int(name.removeprefix("ivf_")) for name in names), default=0)
        if rows >= config.ann_min_rows and wanted >= 2 * current:
            kind = IvfSq(distance_type="dot", num_partitions=wanted)
            segments.create_index("vector", config=kind, name=f"ivf_{wanted}")
            if current:
                segments.drop_index(f"ivf_{current}")


def window_id(first: int, version: str, video_id: str) -> str:
    """The id of the window that begins with frame `first` of this version of a video."""
    return f"{first}:{version}:{video_id}"


def video_of(window_id: str) -> str:
    """The video_id of a window."""
    return window_id.split(":", 2)[2]


def version_of(window_id: str) -> str:
    """`version:video_id`, the same for all windows of one version of a video."""
    return window_id.partition(":")[2]


def file_version(version: str) -> str:
    """The version of the video's file, of a version in the table of videos."""
    return version.partition(".")[0]


def next_version(of_file: str, indexed: str) -> str:
    """The version in the table of videos for a new row in place of one with the version `indexed`."""
    if file_version(indexed) != of_file:
        return of_file
    return f"{of_file}.{int(indexed.partition('.')[2] or 0) + 1}"


def _connect(index: str) -> Any:
    import lancedb  # starts threads: not before Ray has forked its own processes

    # 0: every read looks for a newer version, so added and deleted videos take effect at once.
    return lancedb.connect(index, read_consistency_interval=timedelta(0))


def _deletewhere_in(table: Any, column: str, values: Sequence[str]) -> None:
    for at in range(0, len(values), _IDS_PER_DELETE):
        table.delete(where_in(column, values[at : at + _IDS_PER_DELETE]))


def _optimize(table: Any) -> None:
    """Optimize a table. Other writes go first: if there are too many of them, the next call does it."""
    for _ in range(_OPTIMIZE_ATTEMPTS):
        try:
            table.optimize()
            return
        except RuntimeError as error:
            if "commit conflict" not in str(error):
                raise


def _indexed_columns(table: Any) -> set[str]:
    return {index.columns[0] for index in table.list_indices()}
