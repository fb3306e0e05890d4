"""Videos -> feature store: the Ray Data pipeline list -> divide -> decode -> encode -> write.

A row is one video, one part of a long video, one chunk of frames, or an error. A bad video never stops the
job: its row reaches the writer with `error` and becomes a quarantine record. Every row is a block of its own,
so that any free worker can take the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

from vmr_ray.config import EmbedConfig
from vmr_ray.embedding.progress import Tally
from vmr_ray.embedding.stages import (
    DIVIDED,
    MIN_PART_BYTES,
    Decode,
    DecodeEncodeWrite,
    Divide,
    Encode,
    Write,
)
from vmr_ray.encoders import frame_scaling, frame_spec
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Progress, Quarantined, StoreSpec, Summary, Video
from vmr_ray.storage import is_remote
from vmr_ray.video.sources import find_videos

_MAX_WRITERS = 8  # unless there are more encoders


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
    left_out: list[str] = []
    videos = find_videos(inputs, config.storage_roots, left_out)
    return replace(embed_videos(videos, out, config, progress), left_out=left_out)


def embed_videos(
    videos: Sequence[Video],
    out: str | Path,
    config: EmbedConfig,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """As `embed`, for videos that `find_videos` has listed."""
    _, dim = frame_spec(config.encoder)
    fit = frame_scaling(config.encoder, config.fit).fit
    spec = StoreSpec(config.encoder, dim, config.decode.sampling, fit=fit)
    store = FeatureStore.create(str(out), spec)
    done = store.finished(videos)
    todo = [video for video in videos if video.video_id not in done]
    store.discard_unfinished(todo)
    tally = Tally(len(videos), todo, progress)
    # The longest first, so that all workers finish at about the same time.
    todo.sort(key=lambda video: -video.size)
    # A part that failed may have damaged frames, which only the undivided video shows in full.
    undivided = _work(todo, store, config, tally, divide=True)
    if undivided:
        store.discard_unfinished(undivided)
        _work(undivided, store, config, tally, divide=False)
    finished = store.finished(videos)
    _quarantine_lost(todo, finished, store, tally)
    store.discard_unfinished([video for video in todo if video.video_id in tally.failed])
    store.quarantine.clear(finished)
    # If a changed video failed, its old features are better than none.
    store.delete_stale([video for video in videos if video.video_id in finished])
    return tally.summary(embedded=len(finished - done), skipped=len(done))


def _work(
    queue: list[Video], store: FeatureStore, config: EmbedConfig, tally: Tally, divide: bool
) -> list[Video]:
    """Run the pipeline and count its rows; returns the videos of which a part failed."""
    failed: set[str] = set()
    if queue:
        for row in _pipeline(queue, store.root, config, divide):
            if row["stage"] == DIVIDED:
                failed.add(row["video_id"])
                tally.take_back(row["video_id"])
            elif row["video_id"] not in failed:
                tally.add(row)
    return [video for video in queue if video.video_id in failed]


def _quarantine_lost(todo: list[Video], finished: set[str], store: FeatureStore, tally: Tally) -> None:
    """Quarantine the videos that neither failed nor were finished."""
    for video in todo:
        if video.video_id not in finished and video.video_id not in tally.failed:
            lost = Quarantined(video.video_id, video.uri, "write", "some of its chunks were never written")
            store.quarantine.add(lost)
            tally.failed[video.video_id] = lost


def _pipeline(queue: list[Video], root: str, config: EmbedConfig, divide: bool) -> Iterator[dict[str, Any]]:
    """Yields one small row per written chunk, quarantined video or failed part."""
    import ray
    from ray.data import ActorPoolStrategy

    from vmr_ray.cluster import cluster_cpus, cluster_gpus, connect

    connect()
    cpus = cluster_cpus()
    gpus = config.num_gpus if config.num_gpus is not None else min(1.0, cluster_gpus())
    parts = sum(1 + video.size // MIN_PART_BYTES for video in queue) if divide else len(queue)
    workers = min(config.decode_workers or cpus, parts)
    calls = 1 + config.prefetch if any(is_remote(video.uri) for video in queue) else 1
    rows = [asdict(video) | {"part": 0, "parts": 1} for video in queue]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 5000))
    dataset.context.target_max_block_size = 1
    if parts > len(queue):
        dataset = _stage(dataset, Divide, (config,), ActorPoolStrategy(size=math.ceil(workers / 8)))
    # Pools start with what the cluster has now, and grow with it.
    decoding = ActorPoolStrategy(
        min_size=workers,
        max_size=config.decode_workers,
        max_concurrent_calls_per_actor=calls,
        max_tasks_in_flight_per_actor=calls + 1,
        enable_true_multi_threading=calls > 1,
    )
    if not gpus and not config.encode_workers:
        share = min(1.0, cpus / workers)
        return iter(_stage(dataset, DecodeEncodeWrite, (config, root), decoding, share).iter_rows())
    # Decoders claim CPUs, and Ray keeps them off GPU nodes as long as there are other nodes.
    max_encoders = max(1, int(cluster_gpus() / gpus)) if gpus else cpus
    encoders = min(config.encode_workers or max_encoders, parts)
    share = 1.0 if gpus else min(0.5, cpus / (workers + encoders))
    encoding = ActorPoolStrategy(min_size=encoders, max_size=config.encode_workers)
    device = config.device if gpus else "cpu"
    dataset = _stage(dataset, Decode, (config,), decoding, share)
    dataset = _stage(dataset, Encode, (config, device), encoding, 0 if gpus else share, gpus)
    # Writers claim no CPU, so nothing else limits their number.
    writing = ActorPoolStrategy(min_size=1, max_size=max(encoders, _MAX_WRITERS))
    return iter(_stage(dataset, Write, (root,), writing).iter_rows())


def _stage(
    dataset: Dataset,
    worker: type,
    arguments: tuple[Any, ...],
    pool: ActorPoolStrategy,
    cpus: float = 0,
    gpus: float = 0,
) -> Dataset:
    """`dataset`, mapped row by row by a pool of `worker(*arguments)`."""
    return dataset.map_batches(
        worker,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=arguments,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )
