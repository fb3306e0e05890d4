"""Checkpoint + feature store + annotations -> metrics, each beside two controls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.annotations import load_annotations
from vmr_ray.batches import Example
from vmr_ray.checkpoint import load_info
from vmr_ray.config import EvaluateConfig
from vmr_ray.controls import constant_metrics, derangement
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore, resolve_ids
from vmr_ray.metrics import moment_metrics
from vmr_ray.model.predictor import Predictor
from vmr_ray.sources import filesystem

_ROW = pa.schema(
    [
        ("video_id", pa.string()),
        ("duration", pa.float64()),
        ("query", pa.string()),
        ("truth", pa.list_(pa.list_(pa.float64()))),
        ("predicted", pa.list_(pa.list_(pa.float64()))),  # ranked [start, end, score]
        ("shuffled", pa.list_(pa.list_(pa.float64()))),
    ]
)


@dataclass(frozen=True)
class Evaluation:
    """Percentages by metric name; `constant` and `shuffled` are the controls.

    constant: the best constant spans of the training set. shuffled: the same model, each query
    answered from another video.
    """

    model: dict[str, float]
    constant: dict[str, float]
    shuffled: dict[str, float]
    queries: int
    videos: int
    without_features: int
    checkpoint: str
    version: str


def evaluate(
    checkpoint: str | Path,
    features: str | Path,
    annotations: str | Path,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
) -> Evaluation:
    """Evaluate over the cluster; with `out`, write `metrics.json` and `predictions.parquet` there.

    Raises:
        VmrError: an input is missing or malformed, the features are not of the checkpoint's kind, or
            fewer than two annotated videos are embedded (the shuffled control needs two).
    """
    import pyarrow.parquet as pq
    import ray
    from ray.data import ActorPoolStrategy

    from vmr_ray.runtime import cluster_cpus, connect

    config = config or EvaluateConfig()
    info = load_info(checkpoint)
    store = FeatureStore.open(str(features))
    info.check_features(store.spec, str(features))
    given = load_annotations(annotations)
    files = store.files()
    ids = resolve_ids((a.video_id for a in given), files)
    groups: dict[str, list[Any]] = {}
    for row in given:
        if row.video_id in ids:
            groups.setdefault(ids[row.video_id], []).append(row)
    videos = sorted(groups)
    if len(videos) < 2:
        raise VmrError(
            f"{len(videos)} of the annotated videos of {annotations} are in the feature store {features} "
            f"({len(files)} videos there), at least 2 are needed: embed them, and check the file names"
        )
    others = derangement(len(videos))
    items = [
        {
            "files": list(files[video]),
            "other": list(files[videos[others[i]]]),
            "queries": [a.query for a in groups[video]],
            "spans": [[list(s) for s in a.spans] for a in groups[video]],
        }
        for i, video in enumerate(videos)
    ]
    connect()
    workers = min(cluster_cpus(), -(-len(items) // config.batch_videos))
    batches = (
        ray.data.from_items(items, override_num_blocks=min(len(items), 4 * workers))
        .map_batches(
            _Retrieve,
            batch_size=config.batch_videos,
            batch_format="pyarrow",
            fn_constructor_args=(str(checkpoint), store.root, config),
            compute=ActorPoolStrategy(size=workers),
            num_cpus=0.5,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )
    table = pa.concat_tables(batches).sort_by([("video_id", "ascending")])
    truths = table["truth"].to_pylist()
    durations = table["duration"].to_pylist()
    result = Evaluation(
        model=_metrics(table, "predicted", config),
        constant=constant_metrics(info.constants, truths, durations),
        shuffled=_metrics(table, "shuffled", config),
        queries=len(truths),
        videos=len(videos),
        without_features=len(given) - len(truths),
        checkpoint=str(checkpoint),
        version=info.version,
    )
    if out is not None:
        filesys, path = filesystem(str(out))
        filesys.create_dir(path, recursive=True)
        pq.write_table(table, f"{path}/predictions.parquet", filesystem=filesys)
        with filesys.open_output_stream(f"{path}/metrics.json") as stream:
            stream.write(json.dumps(asdict(result), indent=1).encode())
    return result


def _metrics(table: pa.Table, column: str, config: EvaluateConfig) -> dict[str, float]:
    ranked = [np.asarray(spans).reshape(-1, 3)[:, :2] for spans in table[column].to_pylist()]
    return moment_metrics(ranked, table["truth"].to_pylist(), config.top_k, config.thresholds)


class _Retrieve:
    """(chunk files, another video's files, queries, spans) -> one row a query, answered from both."""

    def __init__(self, checkpoint: str, root: str, config: EvaluateConfig):
        import torch

        torch.set_num_threads(1)
        self.predictor = Predictor.load(checkpoint)
        self.store = FeatureStore.open(root)
        self.config = config

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        texts = [query for row in rows for query in row["queries"]]
        tokens = dict(zip(texts, self.predictor.text(texts), strict=True))
        own = [self._example(row, row["files"], tokens) for row in rows]
        other = [self._example(row, row["other"], tokens) for row in rows]
        predicted, shuffled = (self._retrieve(examples) for examples in (own, other))
        owners = [(e, i) for e in own for i in range(len(e.queries))]
        return pa.Table.from_pylist(
            [
                {
                    "video_id": e.video_id,
                    "duration": e.duration,
                    "query": e.queries[i],
                    "truth": e.spans[i],
                    "predicted": p,
                    "shuffled": s,
                }
                for (e, i), p, s in zip(owners, predicted, shuffled, strict=True)
            ],
            schema=_ROW,
        )

    def _example(self, row: dict[str, Any], files: Sequence[str], tokens: dict[str, np.ndarray]) -> Example:
        video = self.store.read(files)
        return Example(
            video.video_id,
            video.duration,
            video.features,
            video.edges,
            row["queries"],
            [tokens[q] for q in row["queries"]],
            row["spans"],
        )

    def _retrieve(self, examples: list[Example]) -> list[Any]:
        return self.predictor.retrieve(examples, max(self.config.top_k), self.config.nms)
