"""Composed videos -> feature store and annotations, with Ray Data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.features import FeatureStore
from vmr_ray.features.chunks import version_key, video_key
from vmr_ray.photos.compose import SHOTS, deal, frame_features, moments, shots
from vmr_ray.schema import Annotation, Chunk, StoreSpec, Video
from vmr_ray.storage import short_hash
from vmr_ray.video.decode.sampling import Sampling

_BATCH = 16  # videos that a worker composes together
_FPS = 100  # frames a second of the composed videos, before they are sampled


@dataclass(frozen=True)
class Composition:
    """A video that is not rendered: the ids of its photos in order, and the seed of everything else."""

    video_id: str
    photos: tuple[str, ...]
    seed: tuple[int, ...]


def plan(
    name: str, captions: Mapping[str, Sequence[str]], passes: int, seed: int
) -> tuple[list[Composition], list[Annotation]]:
    """Videos that show every photo about `passes` times, with their annotations.

    A photo's captions are shared out among its appearances, so that a caption is encoded once.

    Args:
        name: the beginning of the videos' ids; videos of different names differ.
        captions: of each photo, by its id; SHOTS[1] photos at least.
    """
    ids, part = list(captions), int(short_hash(name, 8), 16)
    videos = math.ceil(passes * len(ids) * 2 / sum(SHOTS))
    compositions, annotations = [], []
    appearances = Counter[str]()
    for number, hand in enumerate(deal(len(ids), videos, np.random.default_rng((seed, part)))):
        photos = tuple(ids[i] for i in hand)
        composition = Composition(f"{name}/{number:06d}", photos, (seed, part, number))
        compositions.append(composition)
        asked = {}
        for photo in photos:
            share = captions[photo][appearances[photo] % passes :: passes]
            asked[photo] = share or captions[photo]
            appearances[photo] += 1
        script = shots(photos, np.random.default_rng(composition.seed))
        annotations += [
            Annotation(composition.video_id, query, tuple(spans), script[-1].end)
            for query, spans in moments(script, asked).items()
        ]
    return compositions, annotations


def write_compositions(
    compositions: Sequence[Composition],
    views: FeatureStore,
    entries: Mapping[str, Video],
    out: str,
    sampling: str,
) -> FeatureStore:
    """Write the features of composed videos to the store at `out`; finished ones are skipped.

    Args:
        views: the store of the photos' views.
        entries: the photos in it, by id.
        sampling: fps=X, as for real videos.
    """
    spec = StoreSpec(views.spec.encoder, views.spec.dim, sampling, fit=views.spec.fit)
    store = FeatureStore.create(out, spec)
    rows = composition_rows(compositions, views, entries)
    videos = [_video(row) for row in rows]
    done = store.finished(videos)
    todo = [row for row in rows if row["video_id"] not in done]
    if todo:
        import ray

        from vmr_ray.cluster import autoscaling_pool, connect

        connect()
        blocks = math.ceil(len(todo) / _BATCH)
        ray.data.from_items(todo, override_num_blocks=blocks).map_batches(
            Compose,
            batch_size=_BATCH,
            batch_format="pyarrow",
            fn_constructor_args=(views.root, store.root),
            compute=autoscaling_pool(blocks),
            num_cpus=1,
        ).materialize()
        store.delete_stale(videos)
    return store


def composition_rows(
    compositions: Sequence[Composition], views: FeatureStore, entries: Mapping[str, Video]
) -> list[dict[str, Any]]:
    """What Compose takes; the fingerprint changes with the composition and with the photos' files."""
    versions = views.catalogue.versions()
    addresses = {
        photo: version.addresses[0]
        for photo, entry in entries.items()
        for version in versions.get(video_key(photo), ())
        if version.version == version_key(entry.fingerprint)
    }
    rows = []
    for composition in compositions:
        files = [addresses[photo] for photo in composition.photos]
        shown = [(photo, entries[photo].fingerprint) for photo in composition.photos]
        rows.append(
            {
                "video_id": composition.video_id,
                "fingerprint": short_hash(repr((shown, composition.seed))),
                "photos": list(composition.photos),
                "files": files,
                "seed": list(composition.seed),
            }
        )
    return rows


def _video(row: dict[str, Any]) -> Video:
    return Video(row["video_id"], row["video_id"], row["fingerprint"])


class Compose:
    """Rows of compositions -> features in the store."""

    def __init__(self, views: str, out: str):
        self.views, self.store = FeatureStore.open(views), FeatureStore.open(out)
        self.sampling = Sampling.parse(self.store.spec.sampling)

    def __call__(self, batch: pa.Table) -> pa.Table:
        for row in batch.to_pylist():
            self._write(row)
        return pa.table({"videos": [len(batch)]})

    def _write(self, row: dict[str, Any]) -> None:
        views = {
            photo: self.views.read([file]).features
            for photo, file in zip(row["photos"], row["files"], strict=True)
        }
        script = shots(row["photos"], np.random.default_rng(row["seed"]))
        frames = np.arange(round(script[-1].end * _FPS)) / _FPS
        sampled = self.sampling.plan(frames, [script[-1].end], [])
        features = frame_features(script, views, sampled.times)
        chunk = Chunk(0, True, script[-1].end, sampled.times, sampled.edges, "")
        self.store.write_chunk(_video(row), chunk, features)
