"""Feature store + checkpoint -> index: every video goes through the network's query-free tower once.

INDEX/*.lance        the tables, see tables.py
INDEX/checkpoint/    a copy of the checkpoint, so that search needs nothing but the index
INDEX/pictures/      of videos whose key frames are far apart, see features/pictures.py
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from vmr_ray.config import IndexConfig
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.features.chunks import video_key
from vmr_ray.features.pictures import Pictures
from vmr_ray.model.checkpoint import CheckpointInfo, check_weights, load_info
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import Predictor
from vmr_ray.model.similarity import shipped_weights, similarity_checkpoint
from vmr_ray.model.windows import Window
from vmr_ray.schema import VideoFeatures
from vmr_ray.search.metadata import Metadata, as_json, tag
from vmr_ray.search.tables import (
    VIDEO_SCHEMA,
    WINDOW_SCHEMA,
    IndexTables,
    file_version,
    next_version,
    segment_schema,
    window_id,
)
from vmr_ray.storage import absolute, exists, is_remote, join, read_bytes, write_bytes

# What a worker returns: one row a window, with its segments and with the row of its video.
_ENCODED = pa.schema(
    [
        *VIDEO_SCHEMA,
        *(field for field in WINDOW_SCHEMA if field.name != "video_id"),
        ("last", pa.bool_()),  # of its video
        ("tags", pa.list_(pa.string())),
        ("starts", pa.list_(pa.float64())),  # [S] seconds, of the window's segments
        ("ends", pa.list_(pa.float64())),  # [S]
        ("vectors", pa.large_binary()),  # float16 [S, dim]
    ]
)
_VIDEOS_PER_TASK = 8


@dataclass(frozen=True)
class IndexSummary:
    """What an index job did: `added` videos in `seconds`; `videos` and `segments` count the whole index."""

    added: int
    videos: int
    segments: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    """A video to index: the addresses of its chunks in the feature store, the `version` of its row in the
    index, and its metadata as JSON."""

    files: tuple[str, ...]
    version: str
    metadata: str


def build_index(
    features: str | Path,
    checkpoint: str | Path | None,
    out: str | Path,
    config: IndexConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    only: Collection[str] | None = None,
    metadata: Mapping[str, Metadata] | None = None,
    encoder: str | None = None,
) -> IndexSummary:
    """Index every video of a feature store that the index does not hold yet.

    Args:
        checkpoint: None ranks without training, by the similarity that a dual encoder sees between a frame
            and the query: `everyday` for features of `efficientnet-lite0`, or the features' own `hf:` model.
        out: the index, a local directory or an object-storage URI that LanceDB takes.
        progress: called with the number of videos done and the number to do.
        only: ids of the videos to index, including deleted ones; default: all that were not deleted.
        metadata: by video_id; searches filter by it. A video whose metadata changed is indexed again.
        encoder: without a checkpoint, another dual encoder that reads these features, such as
            `everyday-multilingual`.

    Raises:
        VmrError: an input is missing or damaged, both a checkpoint and an encoder are given, the features
            are not of the model's kind, or the index was made with another checkpoint.
    """
    from vmr_ray.cluster import connect

    config = config or IndexConfig()
    began = time.monotonic()
    store = FeatureStore.open(str(features))
    info = _checked_checkpoint(store, features, checkpoint, encoder)
    out = absolute(out)
    connect()
    copy_checkpoint(checkpoint, info, out)
    tables = IndexTables.create(out, info.dim)

    tables.sweep()  # an interrupted call may have left windows of the versions that are added now
    jobs = _jobs(store, tables, only, metadata or {})
    added = 0
    for rows in _commits(_encode(jobs, store.root, out, config), 16 * config.batch_windows):
        videos = rows.filter(rows["last"]).select(VIDEO_SCHEMA.names)
        _copy_pictures(store, out, videos)
        tables.add(videos, rows.select(WINDOW_SCHEMA.names), _segment_rows(rows, info.dim))
        added += videos.num_rows
        if progress:
            progress(added, len(jobs))
    if jobs:
        tables.optimize(config)
    seconds = time.monotonic() - began
    return IndexSummary(added, tables.videos.count_rows(), tables.segments.count_rows(), seconds)


def _copy_pictures(store: FeatureStore, index: str, videos: pa.Table) -> None:
    """Copy the pictures of videos whose key frames are far apart. Only a local index has any, because the
    service shows only local files."""
    if is_remote(index) or not (pictures := store.pictures.versions()):
        return
    ids = videos["video_id"].to_pylist()
    versions = [file_version(version) for version in videos["version"].to_pylist()]
    keys = {f"{video_key(video_id)}-{version}" for video_id, version in zip(ids, versions, strict=True)}
    Pictures(index).copy(store.pictures, keys & pictures.keys())


def _checked_checkpoint(
    store: FeatureStore, features: str | Path, checkpoint: str | Path | None, encoder: str | None
) -> CheckpointInfo:
    """The checkpoint's info, once its weights are intact: damage must be found here, not in a worker."""
    if checkpoint is None:
        return similarity_checkpoint(store.spec, str(features), encoder)
    if encoder is not None:
        raise VmrError("a checkpoint names its own encoder: give either a checkpoint or an encoder")
    info = load_info(checkpoint)
    check_weights(checkpoint, info)
    info.check_features(store.spec, str(features))
    return info


def copy_checkpoint(checkpoint: str | Path | None, info: CheckpointInfo, index: str) -> None:
    """Copy the checkpoint into the index. The JSON goes last: with it the copy is complete.

    Raises:
        VmrError: the index holds another checkpoint.
    """
    if exists(join(index, "checkpoint/checkpoint.json")):
        if load_info(join(index, "checkpoint")).version != info.version:
            raise VmrError(
                f"{index} was made with another checkpoint: choose another --out, or delete it first"
            )
        return
    if info.weights:
        weights = (
            shipped_weights() if checkpoint is None else read_bytes(join(checkpoint, "model.safetensors"))
        )
        write_bytes(join(index, "checkpoint/model.safetensors"), weights)
    write_bytes(join(index, "checkpoint/checkpoint.json"), info.model_dump_json(indent=1).encode())


def _jobs(
    store: FeatureStore,
    tables: IndexTables,
    only: Collection[str] | None,
    metadata: Mapping[str, Metadata],
) -> dict[str, _Job]:
    """The videos to index, by id: those that are new, or have another version or other metadata."""
    rows = tables.read_videos(columns=["video_id", "version", "metadata"])
    indexed = {row["video_id"]: (row["version"], row["metadata"]) for row in rows}
    deleted = tables.deleted_ids()
    files = store.files()
    if not files and not indexed and not deleted:
        raise VmrError(f"the feature store {store.root} holds no finished video: run `vmr embed` first")
    for video_id in metadata:
        if video_id not in files and video_id not in indexed:
            raise VmrError(f"metadata names the video {video_id!r}, which {store.root} does not hold")
    jobs = {}
    for video_id, chunks in files.items():
        if video_id in deleted if only is None else video_id not in only:
            continue
        version, kept = indexed.get(video_id, ("", "{}"))
        text = as_json(metadata[video_id], video_id) if video_id in metadata else kept
        if (file_version(version), kept) != (store.version(chunks), text):
            jobs[video_id] = _Job(chunks, next_version(store.version(chunks), version), text)
    return jobs


def _encode(jobs: Mapping[str, _Job], root: str, index: str, config: IndexConfig) -> Iterator[pa.Table]:
    """Encode the videos on the cluster; yields tables of `_ENCODED` rows."""
    if not jobs:
        return
    import ray

    from vmr_ray.cluster import autoscaling_pool

    rows = [asdict(job) | {"files": list(job.files)} for job in jobs.values()]
    yield from (
        ray.data.from_items(rows, override_num_blocks=min(len(rows), 1000))
        .map_batches(
            _EncodeVideos,
            batch_size=_VIDEOS_PER_TASK,
            batch_format="pyarrow",
            fn_constructor_args=(root, f"{index}/checkpoint", config),
            compute=autoscaling_pool(math.ceil(len(rows) / _VIDEOS_PER_TASK)),
            num_cpus=1,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )


def _commits(blocks: Iterable[pa.Table], min_rows: int) -> Iterator[pa.Table]:
    """Concatenate small blocks, because every LanceDB append makes a new version of the table."""
    pending: list[pa.Table] = []
    for block in blocks:
        pending.append(block)
        if sum(table.num_rows for table in pending) >= min_rows:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _segment_rows(rows: pa.Table, dim: int) -> pa.Table:
    """The segments of `_ENCODED` rows, one row each."""
    starts, ends = rows["starts"].to_pylist(), rows["ends"].to_pylist()
    counts = [len(s) for s in starts]
    vectors = np.frombuffer(b"".join(rows["vectors"].to_pylist()), np.float16).astype(np.float32)
    return pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dim),
            "video_id": np.repeat(rows["video_id"].to_pylist(), counts),
            "window_id": np.repeat(rows["window_id"].to_pylist(), counts),
            "tags": rows["tags"].take(pa.array(np.repeat(np.arange(rows.num_rows), counts))),
            "start": np.concatenate(starts),
            "end": np.concatenate(ends),
        },
        schema=segment_schema(dim),
    )


class _EncodeVideos:
    """Rows of a video's chunk files and metadata -> `_ENCODED` rows."""

    def __init__(self, root: str, checkpoint: str, config: IndexConfig):
        import torch

        torch.set_num_threads(1)
        self.checkpoint, self.config = checkpoint, config
        self.store = FeatureStore.open(root)

    @cached_property
    def predictor(self) -> Predictor:
        """Loaded by the first call: of an error in a worker's constructor Ray only hands on the text."""
        return load_predictor(self.checkpoint)

    def __call__(self, batch: pa.Table) -> pa.Table:
        jobs = [_Job(tuple(row["files"]), row["version"], row["metadata"]) for row in batch.to_pylist()]
        videos = [self.store.read(job.files) for job in jobs]
        windows = self.predictor.encode_videos(
            [(video.video_id, video.features, video.edges) for video in videos], self.config.batch_windows
        )
        by_video: dict[str, list[Window]] = {video.video_id: [] for video in videos}
        for window in windows:
            by_video[window.video_id].append(window)
        tables = [
            self._rows(video, job, by_video[video.video_id]) for video, job in zip(videos, jobs, strict=True)
        ]
        return pa.concat_tables(tables)

    def _rows(self, video: VideoFeatures, job: _Job, windows: list[Window]) -> pa.Table:
        rows = []
        for i, window in enumerate(windows):
            starts, ends, vectors = segments(window, self.config.segment_frames)
            rows.append(
                {
                    "video_id": video.video_id,
                    "uri": video.uri,
                    "version": job.version,
                    "metadata": job.metadata,
                    "duration": video.duration,
                    "frames": len(video.features),
                    "partial": video.partial,
                    # With the version, so that a searcher never takes a cached window for another file's.
                    "window_id": window_id(window.first, job.version, video.video_id),
                    "edges": window.edges,
                    "states": window.states.tobytes(),
                    "core": window.core,
                    "last": i == len(windows) - 1,
                    "tags": [tag(key, value) for key, value in json.loads(job.metadata).items()],
                    "starts": starts,
                    "ends": ends,
                    "vectors": vectors.astype(np.float16).tobytes(),
                }
            )
        return pa.Table.from_pylist(rows, schema=_ENCODED)


def segments(window: Window, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half-overlapping segments of `frames` frames: starts [S], ends [S] in seconds, unit vectors [S, dim].

    Only segments whose middle lies in the window's core: the neighbouring windows have the others.
    """
    assert window.vectors is not None
    total = len(window.states)
    firsts = np.arange(0, max(total - frames, 0) + 1, max(1, frames // 2))
    if firsts[-1] + frames < total:
        firsts = np.append(firsts, total - frames)
    lasts = np.minimum(firsts + frames, total)
    keep = (firsts + lasts >= 2 * window.core[0]) & (firsts + lasts < 2 * window.core[1])
    firsts, lasts = firsts[keep], lasts[keep]
    sums = np.concatenate(
        [np.zeros((1, window.vectors.shape[1])), window.vectors.astype(np.float64).cumsum(0)]
    )
    mean = sums[lasts] - sums[firsts]
    mean /= np.linalg.norm(mean, axis=1, keepdims=True).clip(1e-9)
    return window.edges[firsts], window.edges[lasts], mean
