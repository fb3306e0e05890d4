"""Photos -> features of their views, with Ray Data: a feature store whose entries are photos.

A rerun embeds new and changed photos only. A photo that cannot be read becomes a quarantine record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.config import EmbedConfig
from vmr_ray.encoders import FrameEncoder, frame_encoder, frame_scaling, frame_spec
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.photos.files import Photo
from vmr_ray.photos.views import SAMPLING, VIEWS, views
from vmr_ray.schema import Chunk, Quarantined, StoreSpec, Video

_BATCH = 16  # photos that a worker embeds together
_BLOCK = 64  # photos of a task

Progress = Callable[[int, int], None]


def photo_entry(photo: Photo) -> Video:
    """A photo as an entry of a feature store; its fingerprint changes with the image."""
    if isinstance(photo.image, bytes):
        return Video(photo.photo_id, photo.name, size=len(photo.image))
    info, path = photo.image.stat(), str(photo.image.absolute())
    return Video(photo.photo_id, path, f"{info.st_size}-{info.st_mtime_ns}", info.st_size)


def embed_photos(
    photos: Sequence[Photo], out: str, config: EmbedConfig, progress: Progress | None = None
) -> tuple[FeatureStore, list[Quarantined]]:
    """Embed the views of every photo into the store at `out`; also returns the photos that cannot be read.

    Args:
        progress: called with the number of photos done and the number of photos.

    Raises:
        VmrError: more photos than the share `config.max_failed` cannot be read, or the store holds other
            features.
    """
    _, dim = frame_spec(config.encoder)
    fit = frame_scaling(config.encoder, config.fit).fit
    store = FeatureStore.create(out, StoreSpec(config.encoder, dim, SAMPLING, fit=fit))
    by_id = {(video := photo_entry(photo)).video_id: (video, photo) for photo in photos}
    videos = [video for video, _ in by_id.values()]
    done = store.finished(videos)
    count = len(done)
    failed: list[Quarantined] = []
    pairs = [pair for key, pair in by_id.items() if key not in done]
    for row in _embedded(pairs, store.root, config) if pairs else ():
        count += row["photos"]
        failed += [Quarantined(**record) for record in row["failed"] or ()]
        if progress:
            progress(count, len(videos))
    finished = store.finished(videos)
    store.quarantine.clear(finished)
    store.delete_stale([video for video in videos if video.video_id in finished])
    failed.sort(key=lambda record: record.uri)
    if len(failed) > config.max_failed * len(videos):
        raise VmrError(
            f"{len(failed)} of {len(videos)} photos cannot be read, more than the share "
            f"embed.max_failed={config.max_failed:g}; the first: {failed[0].error}"
        )
    return store, failed


def _embedded(
    todo: Sequence[tuple[Video, Photo]], root: str, config: EmbedConfig
) -> Iterator[dict[str, Any]]:
    """Yields a row for every few photos: how many, and which of them failed."""
    import ray
    from ray.data import ActorPoolStrategy

    from vmr_ray.cluster import autoscaling_pool, cluster_gpus, connect

    connect()
    gpus = config.num_gpus if config.num_gpus is not None else min(1.0, cluster_gpus())
    rows = embedding_rows(todo)
    blocks = math.ceil(len(rows) / _BLOCK)
    pool = ActorPoolStrategy(min_size=1, max_size=config.encode_workers) if gpus else autoscaling_pool(blocks)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        EmbedPhotos,
        batch_size=_BATCH,
        batch_format="pyarrow",
        fn_constructor_args=(config, root, config.device if gpus else "cpu"),
        compute=pool,
        num_cpus=0 if gpus else 1,
        num_gpus=gpus,
    )
    return iter(dataset.iter_rows())


def embedding_rows(todo: Sequence[tuple[Video, Photo]]) -> list[dict[str, Any]]:
    """What EmbedPhotos takes; `data` is the encoded image if it is in no file of its own."""
    return [
        asdict(video) | {"name": photo.name, "data": photo.image if isinstance(photo.image, bytes) else None}
        for video, photo in todo
    ]


class EmbedPhotos:
    """Photo rows -> features in the store; yields how many photos, and which of them failed."""

    def __init__(self, config: EmbedConfig, root: str, device: str):
        self.config, self.device = config, device
        self.scaling = frame_scaling(config.encoder, config.fit)
        self.store = FeatureStore.open(root)

    @cached_property
    def encoder(self) -> FrameEncoder:
        """Loaded by the first call, because Ray reports only the text of an error in a constructor."""
        return frame_encoder(self.config.encoder, self.device, threads=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, failed, frames, videos = batch.to_pylist(), [], [], []
        for row in rows:
            name, data = row.pop("name"), row.pop("data")
            video = Video(**row)
            try:
                image = Photo(video.video_id, name, Path(video.uri) if data is None else data, ()).open()
            except VmrError as error:
                failed.append(Quarantined(video.video_id, video.uri, "open", str(error)))
                self.store.quarantine.add(failed[-1])
                continue
            random = np.random.default_rng(list(hashlib.sha256(video.video_id.encode()).digest()))
            frames.append(views(image, self.encoder.size, self.scaling, random))
            videos.append(video)
        if videos:
            features = self._features(np.concatenate(frames)).reshape(len(videos), VIEWS, -1)
            for video, own in zip(videos, features, strict=True):
                times = np.arange(float(VIEWS))
                chunk = Chunk(0, True, float(VIEWS), times, np.arange(VIEWS + 1.0), "")
                self.store.write_chunk(video, chunk, own)
        records = pa.array([[asdict(record) for record in failed]], _FAILED)
        return pa.table({"photos": [len(rows)], "failed": records})

    def _features(self, frames: np.ndarray) -> np.ndarray:
        """[n, dim] of uint8 [n, size, size, 3]."""
        size = self.config.batch_frames
        return np.concatenate([self.encoder(frames[i : i + size]) for i in range(0, len(frames), size)])


_FAILED = pa.list_(
    pa.struct(
        [
            *((name, pa.string()) for name in ("video_id", "uri", "stage", "error")),
            ("attempts", pa.int64()),
        ]
    )
)
