"""Checkpoint + feature store + annotations -> metrics, each beside two controls."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vmr_ray import __version__
from vmr_ray.annotations import load_annotations, read_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.config import EvaluateConfig, SearchConfig
from vmr_ray.encoders import check_texts
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.controls import constant_metrics, derangement
from vmr_ray.evaluation.metrics import candidate_recall, corpus_metrics, moment_metrics
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo, load_info
from vmr_ray.model.inputs import Example
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import Predictor, membership_curves, retrieve
from vmr_ray.storage import absolute, filesystem, read_json, redact_credentials, write_json

if TYPE_CHECKING:
    from vmr_ray.evaluation.report.cases import Case
    from vmr_ray.search.searcher import Searcher

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
_CORPUS_TOP = (1, 5, 10, 100)


@dataclass(frozen=True)
class Corpus:
    """Search in a whole index: percentages by metric name, and of stage 1 apart.

    candidate_recall: the share of the queries whose video stage 1 passed on. candidates: how many videos
    it passed on, on average. not_indexed: annotated queries whose video is not in the index.
    """

    metrics: dict[str, float]
    candidate_recall: float
    candidates: float
    queries: int
    annotated: int
    not_indexed: int
    videos: int


@dataclass(frozen=True)
class Evaluation:
    """Percentages by metric name; `constant` and `shuffled` are the controls.

    constant: the best constant spans of the training set. shuffled: the same model, each query
    answered from another video. corpus: if an index was given.
    """

    model: dict[str, float]
    constant: dict[str, float]
    shuffled: dict[str, float]
    queries: int
    videos: int
    without_features: int
    checkpoint: str
    version: str
    corpus: Corpus | None = None


def evaluate(
    checkpoint: str | Path,
    features: str | Path,
    annotations: str | Path,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    report: str | Path | None = None,
    index: str | Path | None = None,
    search: SearchConfig | None = None,
) -> Evaluation:
    """Evaluate over the cluster; with `out`, write `metrics.json` and `predictions.parquet` there.

    Args:
        report: directory or URI for `report.html`, `report.json` and figures.
        index: index of the same checkpoint; the queries are also asked of all its videos.
        search: how the index is searched.

    Raises:
        VmrError: an input is missing or malformed, the features are not of the checkpoint's kind, the
            index is of another checkpoint, or fewer than two annotated videos are embedded (the shuffled
            control needs two).
    """
    import pyarrow.parquet as pq
    import ray

    from vmr_ray.cluster import autoscaling_pool, connect

    config = config or EvaluateConfig()
    info = load_info(checkpoint)
    store = FeatureStore.open(str(features))
    info.check_features(store.spec, str(features))
    searcher = None if index is None else _searcher(str(index), info, search)
    given = load_annotations(annotations)
    check_texts(info.text_encoder, (a.query for a in given))
    files = store.files()
    groups = by_video(given, files)
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
    tasks = math.ceil(len(items) / config.batch_videos)
    batches = (
        ray.data.from_items(items, override_num_blocks=min(tasks, 1000))
        .map_batches(
            _Retrieve,
            batch_size=config.batch_videos,
            batch_format="pyarrow",
            fn_constructor_args=(str(checkpoint), store.root, config),
            compute=autoscaling_pool(tasks),
            num_cpus=1,
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
        corpus=None if searcher is None else _corpus(searcher, table, config.corpus_queries),
    )
    if out is not None:
        filesys, path = filesystem(str(out))
        filesys.create_dir(path, recursive=True)
        pq.write_table(table, f"{path}/predictions.parquet", filesystem=filesys)
        write_json(f"{out}/metrics.json", asdict(result))
    if report is not None:
        inputs = {"checkpoint": checkpoint, "features": features, "annotations": annotations, "index": index}
        measured = _measured({k: v for k, v in inputs.items() if v is not None}, result, info, store, config)
        _report(str(report), result, table, measured, info, store, files)
    return result


def _searcher(index: str, info: CheckpointInfo, config: SearchConfig | None) -> Searcher:
    from vmr_ray.search.searcher import Searcher

    # What guards a service against its askers has no place here.
    free = {"max_top_k": max(_CORPUS_TOP), "max_query_chars": sys.maxsize}
    searcher = Searcher(index, (config or SearchConfig()).model_copy(update=free))
    if searcher.version != info.version:
        raise VmrError(
            f"the index {index} was made with another checkpoint ({searcher.version[:12]}) than the one to "
            f"evaluate ({info.version[:12]}): index anew, or evaluate that one"
        )
    return searcher


def _corpus(searcher: Searcher, table: pa.Table, most: int) -> Corpus:
    """Ask the index the queries of `table`, at most `most` of them, drawn always alike."""
    indexed = {video["video_id"] for video in searcher.videos()}
    rows = [row for row in table.to_pylist() if row["video_id"] in indexed]
    if not rows:
        raise VmrError(
            f"none of the annotated videos is in the index {searcher.index}: index the same feature store"
        )
    drawn = np.random.default_rng(0).permutation(len(rows))[:most]
    asked = [rows[i] for i in sorted(drawn)]
    found = [searcher.search(row["query"], max(_CORPUS_TOP)) for row in asked]
    owners = [row["video_id"] for row in asked]
    return Corpus(
        metrics=corpus_metrics(
            [[(m.video_id, m.start, m.end) for m in result.moments] for result in found],
            [(row["video_id"], row["truth"]) for row in asked],
            _CORPUS_TOP,
        ),
        candidate_recall=candidate_recall([result.candidates for result in found], owners),
        candidates=float(np.mean([len(result.candidates) for result in found])),
        queries=len(asked),
        annotated=len(rows),
        not_indexed=len(table) - len(rows),
        videos=len(indexed),
    )


def _report(
    directory: str,
    result: Evaluation,
    table: pa.Table,
    measured: dict[str, Any],
    info: CheckpointInfo,
    store: FeatureStore,
    files: dict[str, tuple[str, ...]],
) -> None:
    from vmr_ray.evaluation.report import Answers, choose, write_report

    columns = ("video_id", "duration", "query", "truth", "predicted", "shuffled")
    answers = Answers(*(table[name].to_pylist() for name in columns))
    cases = _with_membership(choose(answers), load_predictor(result.checkpoint), store, files)
    write_report(directory, result, answers, cases, info.constants, measured, _history(result.checkpoint))


def _with_membership(
    cases: Sequence[Case], predictor: Predictor, store: FeatureStore, files: dict[str, tuple[str, ...]]
) -> list[Case]:
    """The cases with the curves that a report draws; computed for them alone, not for every query."""
    found = []
    for case in cases:
        video = store.read(files[case.video_id])
        asked, tokens = [case.query], list(predictor.text([case.query]))
        example = Example(
            case.video_id, case.duration, video.features, video.edges, asked, tokens, [case.truth]
        )
        for curve in membership_curves(predictor, example) or [np.zeros(0)]:
            found.append(case.with_membership(video.edges.tolist(), curve.tolist()))
    return found


def _history(checkpoint: str) -> list[dict[str, float]] | None:
    """The rows of RUN/history.json, if the checkpoint is RUN/best or RUN/last."""
    run = absolute(checkpoint).rstrip("/").rpartition("/")[0]
    try:
        return read_json(f"{run}/history.json", "") or None
    except (OSError, VmrError):  # it is only drawn
        return None


def _measured(
    inputs: dict[str, str | Path],
    result: Evaluation,
    info: CheckpointInfo,
    store: FeatureStore,
    config: EvaluateConfig,
) -> dict[str, Any]:
    read = read_annotations(inputs["annotations"])
    counts = read.counts()
    left_out = {"video_not_in_the_feature_store": result.without_features, **counts.dropped}
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        **{name: redact_credentials(str(where)) for name, where in inputs.items()},
        "version": info.version,
        "epoch": info.epoch,
        "frame_encoder": f"{info.frame_encoder} at {info.sampling}",
        "text_encoder": info.text_encoder,
        "embedded_videos": len(store.video_ids()),
        "annotation_format": read.format,
        "queries": result.queries,
        "videos": result.videos,
        "queries_left_out": {name: count for name, count in left_out.items() if count},
        "queries_clipped": dict(counts.clipped),
        "settings": config.model_dump(mode="json"),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": redact_credentials(command),
        "vmr_ray": __version__,
    }


def _metrics(table: pa.Table, column: str, config: EvaluateConfig) -> dict[str, float]:
    ranked = [np.asarray(spans).reshape(-1, 3)[:, :2] for spans in table[column].to_pylist()]
    return moment_metrics(ranked, table["truth"].to_pylist(), config.top_k, config.thresholds)


class _Retrieve:
    """(chunk files, another video's files, queries, spans) -> one row a query, answered from both."""

    def __init__(self, checkpoint: str, root: str, config: EvaluateConfig):
        import torch

        torch.set_num_threads(1)
        self.checkpoint, self.config = checkpoint, config
        self.store = FeatureStore.open(root)

    @cached_property
    def predictor(self) -> Predictor:
        return load_predictor(self.checkpoint)  # by the first call, see `_Encode` in embed.py

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
        return retrieve(self.predictor, examples, max(self.config.top_k), self.config.nms)
