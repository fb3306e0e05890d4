"""The workers of the embedding pipeline, one class per stage, and the rows that they hand on.

Every call gets one row and yields one-row tables. A row with `error` is a failed video: all stages hand it on
until the writer makes a quarantine record of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.config import EmbedConfig
from vmr_ray.encoders import FrameEncoder, frame_encoder, frame_scaling, frame_spec
from vmr_ray.errors import VmrError, one_line
from vmr_ray.features import FeatureStore
from vmr_ray.features.chunks import COLUMNS, chunk_row, version_key
from vmr_ray.schema import Chunk, Quarantined, Video
from vmr_ray.storage import filesystem, is_remote
from vmr_ray.video.decode.decoder import DecodedChunk, DecodeError, FrameDecoder
from vmr_ray.video.local_copies import LocalCopies

# Bytes; a smaller file is not divided. A long part must also have its share of bytes, because a header may
# claim any duration.
MIN_PART_BYTES = 4 << 20
DIVIDED = "divided"  # the stage of a part that failed: the undivided video is decoded again
_TYPICAL_RATE = 500_000  # bytes per second of video, to estimate the duration of a file in object storage

PART_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("fingerprint", pa.string()),
        ("size", pa.int64()),
        ("part", pa.int32()),
        ("parts", pa.int32()),
    ]
)
# One chunk: the columns that are stored (null in an error row), and what only the pipeline needs.
_CHUNK = [
    *(column.with_nullable(True) for column in COLUMNS),
    ("size", pa.int64()),
    ("damage", pa.string()),
    ("splices", pa.list_(pa.float64())),
    ("pictures", pa.list_(pa.struct([("second", pa.float64()), ("jpeg", pa.binary())]))),
    ("stage", pa.string()),
    ("error", pa.string()),
    ("attempts", pa.int32()),
]
# Pixels and features are raw bytes: without tensor objects per row, and arriving without a copy.
_FRAMES = pa.schema([*_CHUNK, ("frames", pa.large_binary())])
_FEATURES = pa.schema([*_CHUNK, ("features", pa.large_binary())])
_WRITTEN = pa.schema(
    [
        *(column for column in pa.schema(_CHUNK) if column.name not in ("times", "edges", "pictures")),
        ("frames", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


class Divide:
    """Video row -> rows of its parts, so that several workers decode a long video at the same time."""

    def __init__(self, config: EmbedConfig):
        self.decoder = FrameDecoder(config.decode, 1, 1)
        self.minutes = config.split_minutes

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            parts, max_parts = 1, 1 + row["size"] // MIN_PART_BYTES
            if max_parts > 1:
                parts = max(1, min(max_parts, math.ceil(self._seconds(row) / 60 / self.minutes)))
            for part in range(parts):
                yield pa.Table.from_pylist([row | {"part": part, "parts": parts}], schema=PART_SCHEMA)

    def _seconds(self, row: dict[str, Any]) -> float:
        if is_remote(row["uri"]):
            return float(row["size"] / _TYPICAL_RATE)
        try:
            return self.decoder.duration(filesystem(row["uri"])[1])
        except DecodeError:
            return 0.0  # the decoding worker will report the reason


class Decode:
    """Part row -> chunk rows with frames."""

    def __init__(self, config: EmbedConfig):
        size, _ = frame_spec(config.encoder)
        self.decoder = FrameDecoder(config.decode, size, size, frame_scaling(config.encoder, config.fit))
        self.max_attempts = config.max_attempts
        self.copies = LocalCopies(1 + config.prefetch)
        self.decoding = threading.Lock()  # one call decodes while the others fetch

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            part, parts = row.pop("part"), row.pop("parts")
            yield from self._attempts(Video(**row), part, parts)

    def _attempts(self, video: Video, part: int, parts: int) -> Iterator[pa.Table]:
        sent: set[int] = set()
        for attempt in range(1, self.max_attempts + 1):
            try:
                with self.copies.local(video) as path, self.decoding:
                    for chunk in self.decoder.decode(path, part, parts):
                        if chunk.index not in sent:  # a second attempt does not send a chunk again
                            sent.add(chunk.index)
                            yield _frames_row(video, chunk)
                return
            except (DecodeError, OSError, VmrError) as error:
                stage = error.stage if isinstance(error, DecodeError) else "open"
                if stage == "sniff" or parts > 1 or attempt == self.max_attempts:
                    yield _error_row(video, DIVIDED if parts > 1 else stage, error, attempt)
                    return


class Encode:
    """Chunk rows with frames -> chunk rows with features."""

    def __init__(self, config: EmbedConfig, device: str):
        self.name, self.device, self.batch_frames = config.encoder, device, config.batch_frames

    @cached_property
    def encoder(self) -> FrameEncoder:
        """Loaded by the first call, because Ray reports only the text of an error in a constructor."""
        return frame_encoder(self.name, self.device, threads=1)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for i, row in enumerate(batch.drop_columns(["frames"]).to_pylist()):
            if row["error"] is None:
                size = self.encoder.size
                frames = np.frombuffer(batch["frames"][i].as_buffer(), np.uint8).reshape(-1, size, size, 3)
                try:
                    row["features"] = self._features(frames).tobytes()
                except Exception as error:  # whatever a runtime raises for this input is this video's error
                    row |= {"stage": "encode", "error": f"{type(error).__name__}: {error}", "attempts": 1}
            yield _one_row(_FEATURES, row)

    def _features(self, frames: np.ndarray) -> np.ndarray:
        """float16 [n, dim] of uint8 [n, size, size, 3]."""
        starts = range(0, len(frames), self.batch_frames)
        features = np.concatenate([self.encoder(frames[i : i + self.batch_frames]) for i in starts])
        return features.astype(np.float16)


class Write:
    """Chunk rows with features -> files in the store; error rows -> quarantine records."""

    def __init__(self, root: str):
        self.store = FeatureStore.open(root)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        video = Video(row["video_id"], row["uri"], row["fingerprint"], row["size"])
        row["frames"], row["seconds"] = 0, 0.0
        if row["error"] is None:
            features = np.frombuffer(row["features"], np.float16).reshape(-1, self.store.spec.dim)
            names = ("last", "duration", "times", "edges", "damage")
            if pictures := [(picture["second"], picture["jpeg"]) for picture in row["pictures"]]:
                version = version_key(video.fingerprint)
                self.store.pictures.write(video.video_id, version, row["chunk"], pictures)
            self.store.write_chunk(video, Chunk(row["chunk"], *(row[name] for name in names)), features)
            row["frames"], row["seconds"] = len(features), row["edges"][-1] - row["edges"][0]
        elif row["stage"] != DIVIDED:
            self.store.quarantine.add(
                Quarantined(video.video_id, video.uri, row["stage"], row["error"], row["attempts"])
            )
        return _one_row(_WRITTEN, row)


class DecodeEncodeWrite:
    """Part rows -> what was written. Without GPUs one worker does all of it, so pixels never leave it."""

    def __init__(self, config: EmbedConfig, root: str):
        self.decode, self.encode, self.write = Decode(config), Encode(config, "cpu"), Write(root)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for frames in self.decode(batch):
            for features in self.encode(frames):
                yield self.write(features)


def _frames_row(video: Video, chunk: DecodedChunk) -> pa.Table:
    extra: dict[str, Any] = {"size": video.size, "damage": chunk.damage, "splices": chunk.splices}
    extra["pictures"] = [{"second": second, "jpeg": jpeg} for second, jpeg in chunk.pictures]
    return _one_row(_FRAMES, chunk_row(video, chunk) | extra | {"frames": chunk.frames.tobytes()})


def _error_row(video: Video, stage: str, error: Exception, attempts: int) -> pa.Table:
    failure = {"stage": stage, "error": one_line(error), "attempts": attempts}
    return _one_row(_FRAMES, asdict(video) | failure)


def _one_row(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    """A table of one row; missing columns are null, others than those of `schema` are dropped."""
    columns = [pa.array([values.get(field.name)], field.type) for field in schema]
    return pa.table(columns, schema=schema)
