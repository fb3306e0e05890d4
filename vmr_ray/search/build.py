"""Feature store + checkpoint -> LanceDB index: every video goes through the query-free tower once.

INDEX/videos.lance      one row a video; written last, so a listed video is searchable
INDEX/windows.lance     cached states of the network, one row a window: stage 2 reads these
INDEX/segments.lance    unit vectors of short segments: stage 1 searches these
INDEX/deleted.lance     ids of videos that were deleted: they stay away until they are added by name
INDEX/checkpoint/       the checkpoint that made them, so that an index is all that search needs
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.config import IndexConfig
from vmr_ray.errors import VmrError, one_line
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo, check_weights, load_info
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import Predictor
from vmr_ray.model.windows import Window
from vmr_ray.records import read_records
from vmr_ray.storage import absolute, exists, read_bytes, write_bytes

_ROW = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),  # of the video file, see FeatureStore.version
        ("metadata", pa.string()),  # JSON object
        ("tags", pa.list_(pa.string())),  # the same, one `key=value` each, for filters
        ("duration", pa.float64()),
        ("frames", pa.int64()),
        ("partial", pa.bool_()),
        ("last", pa.bool_()),
        ("window_id", pa.string()),
        ("edges", pa.list_(pa.float64())),
        ("states", pa.large_binary()),  # float16 [T, dim]
        ("core", pa.list_(pa.int64())),  # the frames whose moments the window answers for: [low, high)
        ("starts", pa.list_(pa.float64())),  # [S] seconds, of the window's segments
        ("ends", pa.list_(pa.float64())),  # [S]
        ("vectors", pa.large_binary()),  # float16 [S, projection dim]
    ]
)
_WINDOW = ["window_id", "video_id", "edges", "states", "core"]
_VIDEO = ["video_id", "uri", "version", "metadata", "duration", "frames", "partial"]
_VIDEOS = 8  # that are encoded at once
_TABLES = ("videos", "windows", "segments", "deleted")
Metadata = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class IndexSummary:
    """What an index job did; videos and segments count the whole index."""

    added: int
    videos: int
    segments: int
    seconds: float


def build_index(
    features: str | Path,
    checkpoint: str | Path | None,
    out: str | Path,
    config: IndexConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    only: Collection[str] | None = None,
    metadata: Mapping[str, Metadata] | None = None,
) -> IndexSummary:
    """Index every video of a feature store that the index does not hold yet.

    Args:
        checkpoint: None ranks without training, by the similarity that an `hf:` encoder of the features
            sees between a frame and the query.
        out: the index, a local directory or an object-storage URI that LanceDB takes.
        progress: called with the videos done and the videos to do.
        only: ids of the videos to index, also if they were deleted before; default: all that were not.
        metadata: of videos, by id; searches filter by it. A video whose metadata changed is indexed anew.

    Raises:
        VmrError: an input is missing or damaged, the features are not of the checkpoint's kind, or
            the index was made by another checkpoint.
    """
    from vmr_ray.cluster import connect

    config = config or IndexConfig()
    began = time.monotonic()
    store = FeatureStore.open(str(features))
    if checkpoint is None:
        from vmr_ray.model.similarity import similarity_checkpoint

        info = similarity_checkpoint(store.spec, str(features))
    else:
        info = load_info(checkpoint)
        check_weights(checkpoint, info)  # a damaged checkpoint is found here, not on a worker
        info.check_features(store.spec, str(features))
    out = absolute(out)
    connect()
    _claim(out, checkpoint, info)
    tables = _tables(out, info)
    listed = tables["videos"].search().select(["video_id", "version", "metadata"]).limit(None).to_arrow()
    have = {row["video_id"]: row for row in listed.to_pylist()}
    files = store.files()
    for video in metadata or {}:
        if video not in files and video not in have:
            raise VmrError(f"metadata names the video {video!r}, which {features} does not hold")
    away = set(tables["deleted"].search().limit(None).to_arrow()["video_id"].to_pylist())
    notes = {video: _json(fields, video) for video, fields in (metadata or {}).items()}
    todo = {
        video: chunks
        for video, chunks in files.items()
        if (video in only if only is not None else video not in away)
        and (
            video not in have
            or have[video]["version"] != store.version(chunks)
            or notes.get(video, have[video]["metadata"]) != have[video]["metadata"]
        )
    }
    for video in todo:
        notes.setdefault(video, have[video]["metadata"] if video in have else "{}")
    if not todo and not have and not away:
        raise VmrError(f"the feature store {features} holds no finished video: run `vmr embed` first")
    _delete(tables, todo)  # an older version, or what an interrupted run left
    if back := away & set(todo):
        tables["deleted"].delete(f"video_id IN {quoted(back)}")
    done = 0
    for rows in _batches(_encode(todo, notes, store.root, out, config) if todo else (), config):
        tables["windows"].add(rows.select(_WINDOW))
        tables["segments"].add(_segments(rows, info.dim))
        finished = rows.filter(rows["last"]).select(_VIDEO)
        tables["videos"].add(finished)
        done += finished.num_rows
        if progress:
            progress(done, len(todo))
    if todo:
        _optimize(tables, config)
    return IndexSummary(
        done, tables["videos"].count_rows(), tables["segments"].count_rows(), time.monotonic() - began
    )


def read_metadata(file: str | Path) -> Mapping[str, Metadata]:
    """Metadata by video from JSONL or CSV: a `video_id` and any further fields a row. CSV has texts only.

    Raises:
        VmrError: a row has no `video_id`, or names one twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for line, row in read_records(str(file)):
        video = row.pop("video_id", None)
        if not isinstance(video, str) or not video:
            raise VmrError(f"{file}, line {line}: a row of metadata needs the text 'video_id'")
        if video in found:
            raise VmrError(f"{file}, line {line}: {video!r} was named before; give each video one row")
        found[video] = {key: value for key, value in row.items() if key and value is not None}
    return found


def delete_videos(index: str, video_ids: Collection[str]) -> None:
    """Take videos out of an index, for good: `build_index` brings them back only if told to by name.

    Raises:
        VmrError: there is no index, or a video is not in it.
    """
    tables = open_tables(index)
    rows = tables["videos"].search().where(f"video_id IN {quoted(video_ids)}").limit(None).to_arrow()
    if missing := sorted(set(video_ids) - set(rows["video_id"].to_pylist())):
        raise VmrError(f"the video {missing[0]!r} is not in the index: see the list of videos")
    # First the note: an interruption must not let a later `vmr index` bring back what was half deleted.
    tables["deleted"].add(pa.table({"video_id": pa.array(sorted(set(video_ids)))}))
    _delete(tables, video_ids)


def forget_videos(index: str, video_ids: Collection[str]) -> None:
    """Take videos out of an index whose features go too: embedded again, `build_index` brings them back.

    Raises:
        VmrError: there is no index.
    """
    _delete(open_tables(index), video_ids)


def _json(fields: Metadata, video: str) -> str:
    for key, value in fields.items():
        if not isinstance(value, str | int | float | bool):
            raise VmrError(
                f"metadata of {video!r}: {key} is a {type(value).__name__}; "
                "give a text, a number, true or false"
            )
    return json.dumps(dict(fields), sort_keys=True, ensure_ascii=False)


def tag(key: str, value: str | int | float | bool) -> str:
    """One field of the metadata as a text that is equal if and only if the field is."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def open_tables(index: str) -> dict[str, Any]:
    """The tables videos, windows, segments and deleted of an index; they follow what others write to it.

    Raises:
        VmrError: there is no index, or it cannot be reached.
    """
    try:
        connection = _connection(index)
        return {name: connection.open_table(name) for name in _TABLES}
    except (ValueError, OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and "was not found" not in str(error):
            raise VmrError(f"cannot read the index {index}: {one_line(error)}") from None
        raise VmrError(
            f"no index at {index}: make one with `vmr index FEATURES --checkpoint RUN/best --out {index}`"
        ) from None


def _connection(index: str) -> Any:
    import lancedb  # starts threads: not before Ray has forked its own processes

    # Every read looks for a newer version: added videos are found, and deleted ones are not, at once.
    return lancedb.connect(index, read_consistency_interval=timedelta(0))


def quoted(values: Iterable[str]) -> str:
    """Texts as an SQL list."""
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"


def _claim(out: str, checkpoint: str | Path | None, info: CheckpointInfo) -> None:
    """Give the index its own copy of the checkpoint; the JSON goes last, so one that has it is whole."""
    if exists(f"{out}/checkpoint/checkpoint.json"):
        if load_info(f"{out}/checkpoint").version != info.version:
            raise VmrError(
                f"{out} was made with another checkpoint: choose another --out, or delete it first"
            )
        return
    if not info.similarity:
        weights = read_bytes(f"{checkpoint}/model.safetensors")
        write_bytes(f"{out}/checkpoint/model.safetensors", weights)
    write_bytes(f"{out}/checkpoint/checkpoint.json", info.model_dump_json(indent=1).encode())


def _tables(out: str, info: CheckpointInfo) -> dict[str, Any]:
    segment = pa.schema(
        [
            ("vector", pa.list_(pa.float32(), info.dim)),
            ("video_id", pa.string()),
            ("window_id", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("start", pa.float64()),
            ("end", pa.float64()),
        ]
    )
    schemas = {
        "videos": pa.schema([_ROW.field(name) for name in _VIDEO]),
        "windows": pa.schema([_ROW.field(name) for name in _WINDOW]),
        "segments": segment,
        "deleted": pa.schema([("video_id", pa.string())]),
    }
    connection = _connection(out)
    return {
        name: connection.create_table(name, schema=schema, exist_ok=True) for name, schema in schemas.items()
    }


def _delete(tables: dict[str, Any], videos: Iterable[str]) -> None:
    ids = list(videos)
    for name in ("videos", "segments", "windows"):
        if tables[name].count_rows():
            for at in range(0, len(ids), 500):
                tables[name].delete(f"video_id IN {quoted(ids[at : at + 500])}")


def _optimize(tables: dict[str, Any], config: IndexConfig) -> None:
    """Merge small fragments, index what search looks up, and take new rows into the indexes there are."""
    segments = tables["segments"]
    indexed = {name: {i.columns[0] for i in tables[name].list_indices()} for name in ("windows", "segments")}
    if "window_id" not in indexed["windows"]:
        tables["windows"].create_scalar_index("window_id")
    if "video_id" not in indexed["segments"]:
        segments.create_scalar_index("video_id")
        segments.create_scalar_index("tags", index_type="LABEL_LIST")
    add_vector_index(segments, config)
    for table in tables.values():
        table.optimize()


def add_vector_index(segments: Any, config: IndexConfig) -> None:
    """Give a table of segments the index that its size asks for, if it has none of about that size."""
    from lancedb.index import IvfSq

    rows = segments.count_rows()
    wanted = max(1, rows // config.partition_rows)
    # The name tells the partitions there are, which LanceDB does not: they are made anew as the rows double.
    have = max((int(i.name[4:]) for i in segments.list_indices() if i.name.startswith("ivf_")), default=0)
    if rows >= config.ann_min_rows and wanted >= 2 * have:
        kind = IvfSq(distance_type="dot", num_partitions=wanted)
        segments.create_index("vector", config=kind, name=f"ivf_{wanted}")
        if have:
            segments.drop_index(f"ivf_{have}")


def _encode(
    todo: dict[str, tuple[str, ...]],
    notes: Mapping[str, str],
    root: str,
    out: str,
    config: IndexConfig,
) -> Iterator[pa.Table]:
    import ray

    from vmr_ray.cluster import growing_pool

    return iter(
        ray.data.from_items(
            [{"files": list(f), "metadata": notes[video]} for video, f in todo.items()],
            override_num_blocks=min(len(todo), 1000),
        )
        .map_batches(
            _Index,
            batch_size=_VIDEOS,
            batch_format="pyarrow",
            fn_constructor_args=(root, f"{out}/checkpoint", config),
            compute=growing_pool(math.ceil(len(todo) / _VIDEOS)),
            num_cpus=1,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )


def _batches(blocks: Iterable[pa.Table], config: IndexConfig) -> Iterator[pa.Table]:
    """Fewer, larger commits: every LanceDB append makes a new version of the table."""
    held: list[pa.Table] = []
    for block in blocks:
        held.append(block)
        if sum(b.num_rows for b in held) >= 16 * config.batch_windows:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _segments(rows: pa.Table, dim: int) -> pa.Table:
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
        }
    )


class _Index:
    """Chunk files of a video -> one row a window."""

    def __init__(self, root: str, checkpoint: str, config: IndexConfig):
        import torch

        torch.set_num_threads(1)
        self.checkpoint, self.config = checkpoint, config
        self.store = FeatureStore.open(root)

    @cached_property
    def predictor(self) -> Predictor:
        return load_predictor(self.checkpoint)  # by the first call, see `_Encode` in embed.py

    def __call__(self, batch: pa.Table) -> pa.Table:
        videos = [self.store.read(files) for files in batch["files"].to_pylist()]
        by_id = {video.video_id: video for video in videos}
        seen = self.predictor.encode_videos(
            [(v.video_id, v.features, v.edges) for v in videos], self.config.batch_windows
        )
        rows = []
        versions, notes = {}, {}
        for video, row in zip(videos, batch.to_pylist(), strict=True):
            versions[video.video_id] = self.store.version(row["files"])
            notes[video.video_id] = row["metadata"]
        for i, window in enumerate(seen):
            video = by_id[window.video_id]
            starts, ends, vectors = segments(window, self.config.segment_frames)
            rows.append(
                {
                    "video_id": video.video_id,
                    "uri": video.uri,
                    "version": versions[video.video_id],
                    "metadata": notes[video.video_id],
                    "tags": [tag(k, v) for k, v in json.loads(notes[video.video_id]).items()],
                    "duration": video.duration,
                    "frames": len(video.features),
                    "partial": video.partial,
                    "last": i + 1 == len(seen) or seen[i + 1].video_id != window.video_id,
                    # With the version: what a searcher has cached is never another file's.
                    "window_id": f"{window.first}:{versions[video.video_id]}:{video.video_id}",
                    "edges": window.edges,
                    "states": window.states.tobytes(),
                    "core": window.core,
                    "starts": starts,
                    "ends": ends,
                    "vectors": vectors.astype(np.float16).tobytes(),
                }
            )
        return pa.Table.from_pylist(rows, schema=_ROW)


def segments(window: Window, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half-overlapping segments of `frames` frames: starts [S], ends [S] in seconds, unit vectors [S, dim].

    Only those with their middle in the window's core: the others are another window's.
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
