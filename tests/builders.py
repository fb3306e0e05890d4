"""Small inputs that several tests share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from vmr_ray.config import ModelConfig
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.inputs import Example
from vmr_ray.schema import Chunk, StoreSpec, Video
from vmr_ray.search.tables import VIDEO_SCHEMA, WINDOW_SCHEMA, segment_schema, window_id

IndexRows = tuple[pa.Table, pa.Table, pa.Table]  # of videos, windows and segments
SPEC = StoreSpec("some-encoder", 4, "fps=1")


def write_features(
    store: FeatureStore, video: Video, chunk_sizes: list[int], last: bool = True
) -> np.ndarray:
    """Write a video of one-second frames in chunks of these sizes; returns its features [T, 4]."""
    frames = np.arange(sum(chunk_sizes) * 4, dtype=np.float16).reshape(-1, 4)
    at = 0
    for index, n in enumerate(chunk_sizes):
        store.write_chunk(
            video,
            Chunk(
                index,
                last and index == len(chunk_sizes) - 1,
                duration=float(sum(chunk_sizes)),
                times=np.arange(at, at + n) + 0.5,
                edges=np.arange(at, at + n + 1.0),
                damage="",
            ),
            frames[at : at + n],
        )
        at += n
    return frames


VIDEOS = [Video(f"v/{name}.mp4", f"/v/{name}.mp4", "1") for name in "abc"]


def store_content(root: str | Path) -> dict[str, tuple[object, ...]]:
    """All that can be read from a store, bit by bit."""
    return {
        v.video_id: (
            *(v.uri, v.duration, v.partial, v.features.shape, v.features.dtype.str),
            *(array.tobytes() for array in (v.times, v.edges, v.features)),
        )
        for v in FeatureStore.open(str(root))
    }


def example(frames: int = 6, queries: int = 2, spans: list | None = None) -> Example:
    """A video of `frames` one-second frames with random 3-d features and `queries` queries of 5-d tokens."""
    rng = np.random.default_rng(frames)
    return Example(
        f"v{frames}",
        float(frames),
        rng.normal(size=(frames, 3)).astype(np.float16),
        np.arange(frames + 1.0),
        [f"query {i}" for i in range(queries)],
        [rng.normal(size=(2 + i, 5)).astype(np.float16) for i in range(queries)],
        spans or [[(1.0, 3.0)] for _ in range(queries)],
    )


def checkpoint_info() -> CheckpointInfo:
    """A small network's, for 8-d frames and 6-d tokens."""
    return CheckpointInfo(
        model=ModelConfig(dim=16, heads=2, video_layers=1, cross_layers=1),
        frame_encoder="efficientnet-lite0",
        frame_dim=8,
        sampling="fps=1",
        text_encoder="minilm",
        token_dim=6,
    )


def local_client(app: ASGIApp, **options: bool) -> TestClient:
    """A client on the service's own machine: the only one that a service without keys answers."""
    return TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 5000), **options)


def index_rows(video_id: str, version: str, start: float, camera: str) -> IndexRows:
    """An index's rows of a video of eight one-second frames from `start` on: two windows of one segment."""
    dim = checkpoint_info().dim
    rng = np.random.default_rng(int(start))
    video = {"video_id": video_id, "uri": f"/v/{video_id}", "version": version, "frames": 8, "partial": False}
    video |= {"metadata": json.dumps({"camera": camera}), "duration": start + 8}
    windows, segments = [], []
    for first in (0, 4):
        edges = start + first + np.arange(5.0)
        name = {"video_id": video_id, "window_id": window_id(first, version, video_id)}
        states = rng.normal(size=(4, dim)).astype(np.float16).tobytes()
        windows.append(name | {"edges": edges, "states": states, "core": [0, 4]})
        place = {"start": edges[0], "end": edges[-1], "tags": [f'camera="{camera}"']}
        segments.append(name | place | {"vector": rng.normal(size=dim)})
    return (
        pa.Table.from_pylist([video], VIDEO_SCHEMA),
        pa.Table.from_pylist(windows, WINDOW_SCHEMA),
        pa.Table.from_pylist(segments, segment_schema(dim)),
    )
