"""What an archive contains, and what its index and its queries cost: measured with random features."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.archive.costs import ENCODER
from benchmarks.common.output import Figures
from vmr_ray.config import EmbedConfig, ModelConfig
from vmr_ray.encoders import default_text_encoder, frame_spec, text_encoder
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo, save_checkpoint
from vmr_ray.schema import Chunk, StoreSpec, Video

FRAMES = 600  # of a video: ten minutes


def measure_contents(hours: float, queries: int) -> Figures:
    """Bytes of features and index an hour, listing, indexing, and a query on one core.

    Call it in a process of its own: it keeps to one core.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    from vmr_ray.cluster import connect

    connect(address="local", num_cpus=1, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), hours, queries)


def _measure(folder: Path, hours: float, queries: int) -> Figures:
    import torch

    from vmr_ray.search.build import build_index
    from vmr_ray.search.searcher import Searcher

    torch.set_num_threads(1)
    count = max(40, round(hours * 6))  # stage 2 looks at 32 windows, so there must be more
    archive = count * FRAMES / 3600
    store = _made_up_features(folder / "features", count)
    _random_checkpoint(folder / "checkpoint")
    began = time.perf_counter()
    chunks = sum(map(len, store.files().values()))
    listing = time.perf_counter() - began
    began = time.perf_counter()
    build_index(folder / "features", folder / "checkpoint", folder / "index")
    indexing = time.perf_counter() - began
    searcher = Searcher(folder / "index")
    sentences = [f"the person opens door number {i}" for i in range(queries + 5)]
    for query in sentences[:5]:
        searcher.search(query)
    began = time.perf_counter()
    for query in sentences[5:]:
        searcher.search(query)
    return {
        "feature_bytes_per_hour": _bytes(folder / "features") / archive,
        "index_bytes_per_hour": _bytes(folder / "index") / archive,
        "files_per_hour": chunks / archive,
        "list_seconds_per_million_files": 1e6 * listing / chunks,
        "index_core_seconds_per_hour": indexing / archive,
        "query_core_seconds": (time.perf_counter() - began) / queries,
    }


def _made_up_features(folder: Path, count: int) -> FeatureStore:
    """Random features of `count` videos of ten minutes at one frame a second."""
    _, dim = frame_spec(ENCODER)
    store = FeatureStore.create(str(folder), StoreSpec(ENCODER, dim, "fps=1"))
    random, size = np.random.default_rng(0), EmbedConfig().decode.chunk_frames
    for i in range(count):
        video = Video(f"{i:05d}.mp4", f"/{i:05d}.mp4", f"{i:016x}", 1)
        values = random.standard_normal((FRAMES, dim), np.float32).astype(np.float16)
        for index, at in enumerate(range(0, FRAMES, size)):
            part = values[at : at + size]
            edges = np.arange(at, at + len(part) + 1, dtype=float)
            chunk = Chunk(index, at + size >= FRAMES, float(FRAMES), edges[:-1] + 0.5, edges, damage="")
            store.write_chunk(video, chunk, part)
    return store


def _random_checkpoint(folder: Path) -> None:
    """Random weights: what a query costs does not depend on them."""
    text = default_text_encoder(ENCODER)
    info = CheckpointInfo(
        model=ModelConfig(),
        frame_encoder=ENCODER,
        frame_dim=frame_spec(ENCODER)[1],
        sampling="fps=1",
        text_encoder=text,
        token_dim=text_encoder(text).dim,
    )
    save_checkpoint(folder, info.network().state_dict(), info)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
