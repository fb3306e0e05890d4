"""Videos -> feature store: the Ray Data pipeline list -> decode -> encode -> write.

A row that travels is one chunk of one video, or an error: a bad video never stops the job, it
arrives at the writer as a row with `error` and becomes a quarantine record.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.config import EmbedConfig
from vmr_ray.decode.decoder import Chunk, DecodeError, FrameDecoder
from vmr_ray.encoders import frame_encoder, frame_spec
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore, StoreSpec
from vmr_ray.schema import Quarantined, Summary, Video
from vmr_ray.sources import filesystem, find_videos

Progress = Callable[[int, int, int], None]  # videos done, videos failed, frames

_VIDEO = [("video_id", pa.string()), ("uri", pa.string()), ("fingerprint", pa.string())]
_ERROR = [("stage", pa.string()), ("error", pa.string()), ("attempts", pa.int32())]
_CHUNK = [
    ("index", pa.int32()),
    ("last", pa.bool_()),
    ("partial", pa.bool_()),
    ("duration", pa.float64()),
    ("times", pa.list_(pa.float64())),
    ("edges", pa.list_(pa.float64())),
]
# Pixels and features travel as raw bytes: no per-row tensor objects, and zero-copy on arrival.
_FRAMES = pa.schema([*_VIDEO, *_ERROR, *_CHUNK, ("frames", pa.large_binary())])
_FEATURES = pa.schema([*_VIDEO, *_ERROR, *_CHUNK, ("features", pa.large_binary())])
_DONE = pa.schema(
    [
        *_VIDEO,
        *_ERROR,
        ("last", pa.bool_()),
        ("partial", pa.bool_()),
        ("frames", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


def embed(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: EmbedConfig | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Embed every video that `inputs` name into the feature store at `out`; finished ones are skipped.

    Args:
        inputs: files, directories, globs, manifests (JSONL/CSV with video_id, uri), object-store URIs.
        progress: called after each chunk with the videos done, the videos failed and the frames so far.

    Raises:
        VmrError: an input is missing or empty, or the store holds other features.
    """
    config = config or EmbedConfig()
    videos = find_videos(inputs)
    _, dim = frame_spec(config.encoder)
    store = FeatureStore.create(str(out), StoreSpec(config.encoder, dim, config.decode.sampling))
    done = store.finished(videos)
    todo = [video for video in videos if video.video_id not in done]
    store.discard_unfinished(todo)
    began = time.monotonic()
    embedded, frames, seconds = 0, 0, 0.0
    failed: list[Quarantined] = []
    partial: set[str] = set()
    for row in _run(todo, store.root, config) if todo else ():
        if row["error"]:
            failed.append(
                Quarantined(row["video_id"], row["uri"], row["stage"], row["error"], row["attempts"])
            )
        else:
            embedded += row["last"]
            frames += row["frames"]
            seconds += row["seconds"]
            if row["partial"]:
                partial.add(row["video_id"])
        if progress:
            progress(len(done) + embedded, len(failed), frames)
    finished = store.finished(videos)
    for video in store.stale(videos):
        if video.video_id in finished:  # else the old features are better than none
            store.delete(video.video_id, keep_fingerprint=video.fingerprint)
    return Summary(
        videos=len(videos),
        embedded=embedded,
        skipped=len(done),
        quarantined=failed,
        partial=sorted(partial),
        hours=seconds / 3600,
        frames=frames,
        seconds=time.monotonic() - began,
    )


def _run(todo: list[Video], root: str, config: EmbedConfig) -> Iterator[dict[str, Any]]:
    """The pipeline; yields one small row a written chunk or quarantined video."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    from vmr_ray.runtime import cluster_cpus, connect

    connect()
    DataContext.get_current().target_max_block_size = 32 << 20
    cpus = cluster_cpus()
    decoders = min(config.decode_workers or cpus, len(todo))
    encoders = min(config.encode_workers or (1 if config.num_gpus else cpus), len(todo))
    # Both pools may fill all cores: each process has one thread, and back-pressure gives the cores to
    # whichever stage is behind. Half a CPU each, so that both fit on the smallest machine.
    share = min(0.5, cpus / (decoders + encoders))
    return iter(
        ray.data.from_items([asdict(video) for video in todo], override_num_blocks=min(len(todo), 5000))
        .map_batches(
            _Decode,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(config,),
            compute=ActorPoolStrategy(size=decoders),
            num_cpus=share,
        )
        .map_batches(
            _Encode,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(config,),
            compute=ActorPoolStrategy(size=encoders),
            num_cpus=share,
            num_gpus=config.num_gpus,
        )
        .map_batches(
            _write,
            batch_size=None,
            batch_format="pyarrow",
            fn_args=(root,),
            compute=TaskPoolStrategy(),
            num_cpus=0,
        )
        .iter_rows()
    )


class _Decode:
    """Video row -> chunk rows."""

    def __init__(self, config: EmbedConfig):
        size, _ = frame_spec(config.encoder)
        self.decoder = FrameDecoder(config.decode, size, size)
        self.max_attempts = config.max_attempts

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            video = Video(row["video_id"], row["uri"], row["fingerprint"])
            sent, finished = 0, False
            for attempt in range(1, self.max_attempts + 1):
                try:
                    with _local(video.uri) as path:
                        for chunk in self.decoder.decode(path):
                            if chunk.index >= sent:  # a second attempt does not repeat what is on its way
                                yield _chunk_row(video, chunk)
                                sent, finished = sent + 1, chunk.last
                    if not finished:
                        raise DecodeError("decode", "a second attempt gave fewer frames than the first")
                    break
                except (DecodeError, OSError, VmrError) as error:
                    stage = error.stage if isinstance(error, DecodeError) else "open"
                    if stage == "sniff" or attempt == self.max_attempts:
                        yield _error_row(_FRAMES, video, stage, str(error), attempt)
                        break


@contextmanager
def _local(uri: str) -> Iterator[str]:
    """A local path of the video; object storage is copied to a temporary file first."""
    if "://" not in uri:
        yield uri
        return
    source, path = filesystem(uri)
    with tempfile.NamedTemporaryFile(prefix="vmr-", suffix=PurePosixPath(path).suffix) as copy:
        with source.open_input_stream(path) as stream:
            while block := stream.read(8 << 20):
                copy.write(block)
        copy.flush()
        yield copy.name


class _Encode:
    """Chunk rows with frames -> chunk rows with features."""

    def __init__(self, config: EmbedConfig):
        self.encoder = frame_encoder(config.encoder, "cuda" if config.num_gpus else "cpu", threads=1)
        self.batch_frames = config.batch_frames

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for i, row in enumerate(batch.drop_columns(["frames"]).to_pylist()):
            if row["error"] is None:
                video = Video(row["video_id"], row["uri"], row["fingerprint"])
                size = self.encoder.size
                frames = np.frombuffer(batch["frames"][i].as_buffer(), np.uint8).reshape(-1, size, size, 3)
                try:
                    parts = [
                        self.encoder(frames[k : k + self.batch_frames])
                        for k in range(0, len(frames), self.batch_frames)
                    ]
                except Exception as error:  # whatever a runtime raises for this input is this video's error
                    yield _error_row(_FEATURES, video, "encode", f"{type(error).__name__}: {error}", 1)
                    continue
                row["features"] = np.concatenate(parts).astype(np.float16).tobytes()
            yield pa.Table.from_pylist([row], schema=_FEATURES)


def _write(batch: pa.Table, root: str) -> pa.Table:
    """Chunk rows with features -> files in the store; error rows -> quarantine records."""
    store = FeatureStore.open(root)
    rows = []
    for row in batch.to_pylist():
        video = Video(row["video_id"], row["uri"], row["fingerprint"])
        row["frames"], row["seconds"] = 0, 0.0
        if row["error"]:
            store.quarantine(
                Quarantined(video.video_id, video.uri, row["stage"], row["error"], row["attempts"])
            )
        else:
            features = np.frombuffer(row["features"], np.float16).reshape(-1, store.spec.dim)
            store.write_chunk(
                video,
                row["index"],
                row["last"],
                times=row["times"],
                edges=row["edges"],
                features=features,
                duration=row["duration"],
                partial=row["partial"],
            )
            row["frames"], row["seconds"] = len(features), row["edges"][-1] - row["edges"][0]
            if row["last"]:
                store.forgive(video)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_DONE)


def _chunk_row(video: Video, chunk: Chunk) -> pa.Table:
    values = {**asdict(video), **{name: getattr(chunk, name) for name, _ in _CHUNK}}
    values["frames"] = chunk.frames.tobytes()
    return _one_row(_FRAMES, values)


def _error_row(schema: pa.Schema, video: Video, stage: str, error: str, attempts: int) -> pa.Table:
    return _one_row(schema, {**asdict(video), "stage": stage, "error": error, "attempts": attempts})


def _one_row(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    return pa.table(
        {field.name: pa.array([values.get(field.name)], field.type) for field in schema}, schema=schema
    )
