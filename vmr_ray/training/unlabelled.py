"""Feature store -> checkpoint without annotations: the boundaries of a person's own videos are learned.

The stretches between cuts are the moments, and a dual encoder's own vectors with noise are the queries (see
`stretches.py`); the network around the dual encoder's similarity is trained on compositions of them. The
files in OUT are those of `train`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.config import Config
from vmr_ray.encoders import frame_projection
from vmr_ray.encoders.everyday import unit
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.similarity import similarity_checkpoint
from vmr_ray.schema import Span, VideoFeatures
from vmr_ray.storage import absolute
from vmr_ray.training.batches import ROW_SCHEMA, to_row
from vmr_ray.training.prepare import shuffled_ids, split, write_rows
from vmr_ray.training.stretches import pseudo_query, stretches_of
from vmr_ray.training.tracking import require
from vmr_ray.training.train import Report, TrainResult, claim_run, fit

MAX_VIDEOS = 2000  # more teach little more: few things are learned
_MIN_STRETCHES = 8


def train_unlabelled(
    features: str | Path,
    out: str | Path,
    config: Config | None = None,
    encoder: str | None = None,
    report: Report | None = None,
) -> TrainResult:
    """Train on the videos of a feature store alone; the same call resumes an interrupted run.

    Args:
        encoder: the dual encoder that will search, if several read these features; default: the usual one.
        report: called with the metrics of every epoch, which are those of made-up queries.

    Raises:
        VmrError: no dual encoder reads the features, there are too few videos or too few changes in them, or
            `out` holds a run with other settings.
    """
    config = config or Config()
    require(config.train.track)
    store = FeatureStore.open(str(features))
    info = _untrained(similarity_checkpoint(store.spec, str(features), encoder))
    out = absolute(out)
    files = store.files()
    groups = dict(zip(("train", "val"), _drawn(files, config), strict=True))
    if not groups["val"]:
        raise VmrError(
            f"{features} holds {len(files)} videos: at least 2 are needed, one of them to validate on"
        )
    claim_run(out, config, {"features": store.path, "annotations": "", "val": "", "text": info.text_encoder})

    from vmr_ray.cluster import connect

    connect()
    prepared = {
        name: write_rows(
            f"{out}/prepared/{name}",
            store,
            sorted(group),
            [{"video_id": v, "files": list(files[v])} for v in sorted(group)],
            _PrepareStretches,
            info.model_dump_json(),
        )
        for name, group in groups.items()
    }
    for name, rows in prepared.items():
        if rows.queries < (_MIN_STRETCHES if name == "train" else 1):
            raise VmrError(
                f"the {name} videos of {features} have {rows.queries} stretches between changes of the "
                f"picture: embed more videos, at least {_MIN_STRETCHES} stretches are needed"
            )
    return fit(out, prepared, info, config, report)


def _untrained(info: CheckpointInfo) -> CheckpointInfo:
    """The similarity with a network around it that has no weights yet."""
    assert info.similarity is not None
    return info.model_copy(update={"similarity": info.similarity.model_copy(update={"refined": ""})})


def _drawn(
    files: dict[str, tuple[str, ...]], config: Config
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """At most MAX_VIDEOS videos, drawn by their names, for training and for validation."""
    drawn = shuffled_ids(files, config.train.seed)[:MAX_VIDEOS]
    return split({v: files[v] for v in drawn}, config.train.val_fraction, config.train.seed)


class _PrepareStretches:
    """Chunk files -> training rows with a dual encoder's vectors as features, and queries made of them."""

    def __init__(self, root: str, info: str):
        self.store, self.info = FeatureStore.open(root), CheckpointInfo.model_validate_json(info)

    @cached_property
    def _projection(self) -> Any:
        return frame_projection(self.info.text_encoder)  # loaded at the first call, in the worker

    def __call__(self, batch: pa.Table) -> pa.Table:
        assert self.info.similarity is not None
        videos: list[tuple[VideoFeatures, list[Span], list[np.ndarray]]] = []
        for row in batch.to_pylist():
            video = self.store.read(tuple(row["files"]))
            vectors = video.features.astype(np.float32)
            vectors = unit(vectors if self._projection is None else self._projection(vectors))  # [T, dim]
            spans = stretches_of(vectors, video.edges, self.info.similarity.shots)
            firsts = np.searchsorted(video.edges, [span[0] for span in spans])
            lasts = np.searchsorted(video.edges, [span[1] for span in spans])
            moments = [vectors[a:b] for a, b in zip(firsts, lasts, strict=True)]
            if spans:
                video = replace(video, features=vectors.astype(np.float16))
                videos.append((video, spans, moments))
        means = np.stack([m.mean(0) for *_, moments in videos for m in moments]) if videos else None
        rows = []
        for video, spans, moments in videos:
            assert means is not None
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(video.video_id.encode()).digest()[:8]))
            queries = [f"{start:.1f} s to {end:.1f} s" for start, end in spans]
            rows.append(
                to_row(
                    video,
                    queries,
                    [pseudo_query(m, means, rng) for m in moments],
                    [[list(span)] for span in spans],
                )
            )
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
