"""The LanceDB tables of an index. No other module calls LanceDB.

INDEX/videos.lance      one row a video; written last, so every video listed here is searchable
INDEX/windows.lance     one row a window: the network's cached states, which stage 2 reads
INDEX/segments.lance    one row a short segment: the unit vectors that stage 1 searches
INDEX/deleted.lance     ids of deleted videos, which are indexed again only when they are named
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vmr_ray.config import IndexConfig
from vmr_ray.errors import VmrError, one_line
from vmr_ray.search.metadata import tag
from vmr_ray.search.result import Filter

VIDEO_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),  # of the video file, see FeatureStore.version
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
        return cls(*(connection.create_table(name, schema=s, exist_ok=True) for name, s in schemas.items()))

    # -- reading ---------------------------------------------------------------------------------

    def read_videos(
        self, video_ids: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of these videos (default: of all), in no particular order. Unknown ids have none."""
        if video_ids is not None and not video_ids:
            return []
        search = self.videos.search()
        if video_ids is not None:
            search = search.where(_where_in("video_id", video_ids))
        if columns is not None:
            search = search.select(list(columns))
        return list(search.limit(None).to_arrow().to_pylist())

    def video_ids(self) -> list[str]:
        """The ids of all videos."""
        return [row["video_id"] for row in self.read_videos(columns=["video_id"])]

    def has_video(self, video_id: str) -> bool:
        return bool(self.videos.count_rows(_where_in("video_id", [video_id])))

    def deleted_ids(self) -> set[str]:
        """The ids of the videos that were deleted and not indexed again."""
        return set(self.deleted.search().limit(None).to_arrow()["video_id"].to_pylist())

    def read_windows(self, window_ids: Collection[str]) -> list[dict[str, Any]]:
        """The rows of these windows, in no particular order. Unknown ids have none."""
        search = self.windows.search().where(_where_in("window_id", window_ids))
        return list(search.limit(len(window_ids)).to_arrow().to_pylist())

    def read_segments(self, video_ids: Collection[str], limit: int) -> SegmentRows | None:
        """All segments of these videos; None if there are more than `limit`."""
        search = self.segments.search().where(_where_in("video_id", sorted(video_ids)))
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
        conditions = [_where_in("video_id", video_ids)] if video_ids is not None else []
        conditions += [_where_tagged(key, wanted) for key, wanted in (filter or {}).items()]
        if conditions:
            search = search.where(" AND ".join(conditions), prefilter=True)
        nearest = search.select(["window_id", "_distance"]).limit(limit).to_arrow()
        return list(dict.fromkeys(nearest["window_id"].to_pylist()))

    # -- writing ---------------------------------------------------------------------------------

    def add(self, videos: pa.Table, windows: pa.Table, segments: pa.Table) -> None:
        """Append rows; `videos` only with or after the last window of each."""
        self.windows.add(windows)
        self.segments.add(segments)
        self.videos.add(videos)

    def delete_videos(self, video_ids: Collection[str]) -> None:
        """Delete videos for good: `build_index` adds them again only if they are named.

        Raises:
            VmrError: a video is not in the index.
        """
        known = {row["video_id"] for row in self.read_videos(video_ids, ["video_id"])}
        if missing := sorted(set(video_ids) - known):
            raise VmrError(f"the video {missing[0]!r} is not in the index: see the list of videos")
        # This record goes first, so that `vmr index` does not restore what an interrupted call half deleted.
        self.deleted.add(pa.table({"video_id": pa.array(sorted(set(video_ids)))}))
        self.forget_videos(video_ids)

    def forget_videos(self, video_ids: Iterable[str]) -> None:
        """Delete all rows of videos; `build_index` adds them again once they have features."""
        ids = list(video_ids)
        for table in (self.videos, self.segments, self.windows):
            if table.count_rows():
                for at in range(0, len(ids), _IDS_PER_DELETE):
                    table.delete(_where_in("video_id", ids[at : at + _IDS_PER_DELETE]))

    def restore_videos(self, video_ids: Iterable[str]) -> None:
        """Take videos off the list of deleted ones."""
        if restored := self.deleted_ids() & set(video_ids):
            self.deleted.delete(_where_in("video_id", restored))

    def optimize(self, config: IndexConfig) -> None:
        """Merge small files, create the indexes that search needs, and take new rows into them."""
        if "window_id" not in _indexed_columns(self.windows):
            self.windows.create_scalar_index("window_id")
        if "video_id" not in _indexed_columns(self.segments):
            self.segments.create_scalar_index("video_id")
            self.segments.create_scalar_index("tags", index_type="LABEL_LIST")
        self.add_vector_index(self.segments, config)
        for table in (self.videos, self.windows, self.segments, self.deleted):
            table.optimize()

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


def _connect(index: str) -> Any:
    import lancedb  # starts threads: not before Ray has forked its own processes

    # 0: every read looks for a newer version, so added and deleted videos take effect at once.
    return lancedb.connect(index, read_consistency_interval=timedelta(0))


def _indexed_columns(table: Any) -> set[str]:
    return {index.columns[0] for index in table.list_indices()}


def _text(value: str) -> str:
    """A string as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _where_in(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(map(_text, values))})"


def _where_tagged(key: str, wanted: Any) -> str:
    """The condition that a video's field `key` has the value `wanted`, or one of these values."""
    values = [wanted] if isinstance(wanted, str | int | float | bool) else list(wanted)
    return f"array_has_any(tags, [{', '.join(_text(tag(key, value)) for value in values)}])"
