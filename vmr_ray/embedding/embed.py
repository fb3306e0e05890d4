"""Videos -> feature store: the Ray Data pipeline list -> divide -> decode -> encode -> write.

A row that travels is one video, one part of a long one, one chunk of frames, or an error: a bad video
never stops the job, it arrives at the writer as a row with `error` and becomes a quarantine record.
Every row is a block of its own, so that any worker may take the next one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

from vmr_ray.config import EmbedConfig
from vmr_ray.embedding.progress import Tally
from vmr_ray.encoders import FrameEncoder, frame_encoder, frame_spec
from vmr_ray.errors import VmrError, one_line
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Progress, Quarantined, StoreSpec, Summary, Video
from vmr_ray.storage import filesystem, is_remote
from vmr_ray.video.decode.decoder import Chunk, DecodeError, FrameDecoder
from vmr_ray.video.local_copies import LocalCopies
from vmr_ray.video.sources import find_videos

# A part needs its share of the file: a header may claim any length.
_LEAST_PART = 4 << 20  # bytes
_TYPICAL_RATE = 500_000  # bytes a second: how long a file is that lies elsewhere
_WRITERS = 8  # at most, unless there are more encoders
_DIVIDED = "divided"  # the stage of a part that failed: the video is decoded again, in one

_VIDEO = [("video_id", pa.string()), ("uri", pa.string()), ("fingerprint", pa.string()), ("size", pa.int64())]
_PART = [("part", pa.int32()), ("parts", pa.int32())]
_ERROR = [("stage", pa.string()), ("error", pa.string()), ("attempts", pa.int32())]
_CHUNK = [
    ("index", pa.int32()),
    ("last", pa.bool_()),
    ("damage", pa.string()),
    ("duration", pa.float64()),
    ("times", pa.list_(pa.float64())),
    ("edges", pa.list_(pa.float64())),
]
# Pixels and features travel as raw bytes: no per-row tensor objects, and zero-copy on arrival.
_FRAMES = pa.schema([*_VIDEO, *_ERROR, *_CHUNK, ("frames", pa.large_binary())])
_FEATURES = pa.schema([*_VIDEO, *_ERROR, *_CHUNK, ("features", pa.large_binary())])
_PARTS = pa.schema([*_VIDEO, *_PART])
_DONE = pa.schema(
    [*_VIDEO, *_ERROR, *_CHUNK[:4], ("frames", pa.int64()), ("seconds", pa.float64())],
)


def embed(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: EmbedConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Embed every video that `inputs` name into the feature store at `out`; finished ones are skipped.

    Args:
        inputs: files, directories, globs, manifests (JSONL/CSV with video_id, uri), object-store URIs.
        progress: called at the start and after each chunk.

    Raises:
        VmrError: an input is missing or empty, a manifest names a URI outside the storage roots, or the
            store holds other features.
    """
    config = config or EmbedConfig()
    return embed_videos(find_videos(inputs, config.storage_roots), out, config, progress)


def embed_videos(
    videos: Sequence[Video],
    out: str | Path,
    config: EmbedConfig,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """As `embed`, for videos that `find_videos` has listed."""
    _, dim = frame_spec(config.encoder)
    store = FeatureStore.create(str(out), StoreSpec(config.encoder, dim, config.decode.sampling))
    done = store.finished(videos)
    todo = [video for video in videos if video.video_id not in done]
    store.discard_unfinished(todo)
    tally = Tally(len(videos), todo, progress)
    # The longest first: at the end all workers finish at about the same time.
    queue, divide = sorted(todo, key=lambda video: -video.size), True
    while queue:
        again = set()
        for row in _run(queue, store.root, config, divide):
            if row["stage"] == _DIVIDED:
                again.add(row["video_id"])
                tally.forget(row["video_id"])
            elif row["video_id"] not in again:
                tally.add(row)
        queue, divide = [video for video in queue if video.video_id in again], False
        store.discard_unfinished(queue)
    finished = store.finished(videos)
    for video in todo:
        if video.video_id not in finished and video.video_id not in tally.failed:
            lost = Quarantined(video.video_id, video.uri, "write", "some of its chunks were never written")
            store.quarantine(lost)
            tally.failed[video.video_id] = lost
    store.discard_unfinished([video for video in todo if video.video_id in tally.failed])
    store.forgive(finished)
    # Of a changed video that failed, the old features are better than none.
    store.delete_stale([video for video in videos if video.video_id in finished])
    return tally.summary(embedded=len(finished - done), skipped=len(done))


def _run(queue: list[Video], root: str, config: EmbedConfig, divide: bool) -> Iterator[dict[str, Any]]:
    """The pipeline; yields one small row a written chunk, quarantined video or failed part."""
    import ray
    from ray.data import ActorPoolStrategy

    from vmr_ray.cluster import cluster_cpus, cluster_gpus, connect

    connect()
    cpus = cluster_cpus()
    gpus = config.num_gpus if config.num_gpus is not None else min(1.0, cluster_gpus())
    parts = sum(1 + video.size // _LEAST_PART for video in queue) if divide else len(queue)
    workers = min(config.decode_workers or cpus, parts)
    ahead = 1 + config.prefetch if any(is_remote(video.uri) for video in queue) else 1
    rows = [asdict(video) | {"part": 0, "parts": 1} for video in queue]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 5000))
    dataset.context.target_max_block_size = 1
    if parts > len(queue):
        dataset = _stage(dataset, _Divide, (config,), ActorPoolStrategy(size=math.ceil(workers / 8)))
    # Pools begin with what the cluster has now and grow with it.
    decoding = ActorPoolStrategy(
        min_size=workers,
        max_size=config.decode_workers,
        max_concurrent_calls_per_actor=ahead,
        max_tasks_in_flight_per_actor=ahead + 1,
        enable_true_multi_threading=ahead > 1,
    )
    if not gpus and not config.encode_workers:
        return iter(_stage(dataset, _All, (config, root), decoding, min(1.0, cpus / workers)).iter_rows())
    # Decoders have the cores, and Ray keeps them away from GPU nodes as long as there are others.
    most = max(1, int(cluster_gpus() / gpus)) if gpus else cpus
    encoders = min(config.encode_workers or most, parts)
    share = 1.0 if gpus else min(0.5, cpus / (workers + encoders))
    encoding = ActorPoolStrategy(min_size=encoders, max_size=config.encode_workers)
    device = config.device if gpus else "cpu"
    dataset = _stage(dataset, _Decode, (config,), decoding, share)
    dataset = _stage(dataset, _Encode, (config, device), encoding, 0 if gpus else share, gpus)
    # Writers claim no CPU, so nothing else would end their growth.
    writing = ActorPoolStrategy(min_size=1, max_size=max(encoders, _WRITERS))
    return iter(_stage(dataset, _Write, (root,), writing).iter_rows())


def _stage(
    dataset: Dataset,
    work: type,
    given: tuple[Any, ...],
    pool: ActorPoolStrategy,
    cpus: float = 0,
    gpus: float = 0,
) -> Dataset:
    return dataset.map_batches(
        work,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=given,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )


class _Divide:
    """Video row -> rows of its parts, so that several workers decode a long video at once."""

    def __init__(self, config: EmbedConfig):
        self.decoder = FrameDecoder(config.decode, 1, 1)
        self.minutes = config.split_minutes

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            parts = 1
            if (most := 1 + row["size"] // _LEAST_PART) > 1:
                parts = max(1, min(most, math.ceil(self._seconds(row) / 60 / self.minutes)))
            for part in range(parts):
                yield pa.Table.from_pylist([row | {"part": part, "parts": parts}], schema=_PARTS)

    def _seconds(self, row: dict[str, Any]) -> float:
        if is_remote(row["uri"]):
            return float(row["size"] / _TYPICAL_RATE)
        try:
            return self.decoder.duration(filesystem(row["uri"])[1])
        except DecodeError:
            return 0.0  # the decoding worker will say why


class _All:
    """Rows of parts -> what was written: without GPUs a core does all of it, and pixels never leave it."""

    def __init__(self, config: EmbedConfig, root: str):
        self.decode, self.encode, self.write = _Decode(config), _Encode(config, "cpu"), _Write(root)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for frames in self.decode(batch):
            for features in self.encode(frames):
                yield self.write(features)


class _Decode:
    """Rows of parts -> chunk rows."""

    def __init__(self, config: EmbedConfig):
        size, _ = frame_spec(config.encoder)
        self.decoder = FrameDecoder(config.decode, size, size)
        self.max_attempts = config.max_attempts
        self.copies = LocalCopies(1 + config.prefetch)
        self.turn = threading.Lock()  # one decodes while the others fetch

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            part, parts = row.pop("part"), row.pop("parts")
            yield from self._attempts(Video(**row), part, parts)

    def _attempts(self, video: Video, part: int, parts: int) -> Iterator[pa.Table]:
        sent: set[int] = set()
        for attempt in range(1, self.max_attempts + 1):
            try:
                with self.copies.local(video) as path, self.turn:
                    for chunk in self.decoder.decode(path, part, parts):
                        if chunk.index not in sent:  # a second attempt does not repeat what is on its way
                            sent.add(chunk.index)
                            yield _chunk_row(video, chunk)
                return
            except (DecodeError, OSError, VmrError) as error:
                stage = error.stage if isinstance(error, DecodeError) else "open"
                if stage == "sniff" or parts > 1 or attempt == self.max_attempts:
                    yield _error_row(_FRAMES, video, _DIVIDED if parts > 1 else stage, error, attempt)
                    return


class _Encode:
    """Chunk rows with frames -> chunk rows with features."""

    def __init__(self, config: EmbedConfig, device: str):
        self.name, self.device, self.batch_frames = config.encoder, device, config.batch_frames

    @cached_property
    def encoder(self) -> FrameEncoder:
        """Loaded by the first call: of an error in a worker's constructor Ray only hands on the text."""
        return frame_encoder(self.name, self.device, threads=1)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for i, row in enumerate(batch.drop_columns(["frames"]).to_pylist()):
            if row["error"] is None:
                size = self.encoder.size
                frames = np.frombuffer(batch["frames"][i].as_buffer(), np.uint8).reshape(-1, size, size, 3)
                try:
                    parts = [
                        self.encoder(frames[k : k + self.batch_frames])
                        for k in range(0, len(frames), self.batch_frames)
                    ]
                except Exception as error:  # whatever a runtime raises for this input is this video's error
                    row |= {"stage": "encode", "error": f"{type(error).__name__}: {error}", "attempts": 1}
                else:
                    row["features"] = np.concatenate(parts).astype(np.float16).tobytes()
            yield pa.Table.from_pylist([row], schema=_FEATURES)


class _Write:
    """Chunk rows with features -> files in the store; error rows -> quarantine records."""

    def __init__(self, root: str):
        self.store = FeatureStore.open(root)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        video = Video(row["video_id"], row["uri"], row["fingerprint"], row["size"])
        row["frames"], row["seconds"] = 0, 0.0
        if row["error"] is None:
            features = np.frombuffer(row["features"], np.float16).reshape(-1, self.store.spec.dim)
            self.store.write_chunk(
                video,
                row["index"],
                row["last"],
                times=row["times"],
                edges=row["edges"],
                features=features,
                duration=row["duration"],
                partial=bool(row["damage"]),
            )
            row["frames"], row["seconds"] = len(features), row["edges"][-1] - row["edges"][0]
        elif row["stage"] != _DIVIDED:
            self.store.quarantine(
                Quarantined(video.video_id, video.uri, row["stage"], row["error"], row["attempts"])
            )
        return pa.Table.from_pylist([row], schema=_DONE)


def _chunk_row(video: Video, chunk: Chunk) -> pa.Table:
    values = {**asdict(video), **{name: getattr(chunk, name) for name, _ in _CHUNK}}
    values["frames"] = chunk.frames.tobytes()
    return _one_row(_FRAMES, values)


def _error_row(schema: pa.Schema, video: Video, stage: str, error: Exception, attempts: int) -> pa.Table:
    failure = {"stage": stage, "error": one_line(error), "attempts": attempts}
    return _one_row(schema, {**asdict(video), **failure})


def _one_row(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    return pa.table(
        {field.name: pa.array([values.get(field.name)], field.type) for field in schema}, schema=schema
    )
