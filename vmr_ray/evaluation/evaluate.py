"""Feature store + annotations + checkpoint -> metrics, each with two controls.

OUT/metrics.json         the Evaluation
OUT/predictions.parquet  one row a query: its true spans and the ranked answers
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vmr_ray.annotations import AnnotationSet, AnnotationSource
from vmr_ray.config import EvaluateConfig, SearchConfig
from vmr_ray.evaluation.controls import constant_metrics
from vmr_ray.evaluation.corpus import open_index, search_corpus
from vmr_ray.evaluation.inputs import EvaluationInputs, open_inputs
from vmr_ray.evaluation.metrics import ConstantSpan, best_iou, moment_metrics
from vmr_ray.evaluation.presence import presence_metrics
from vmr_ray.evaluation.qvhighlights import best_constant_metrics, qvhighlights_metrics, saliency_metrics
from vmr_ray.evaluation.result import Evaluation, PresenceMetrics, QVHighlightsMetrics
from vmr_ray.evaluation.retrieval import answer_queries
from vmr_ray.storage import filesystem, join, refuse_input, replacing, write_json

if TYPE_CHECKING:
    from vmr_ray.search.searcher import Searcher


def evaluate(
    features: str | Path,
    annotations: AnnotationSource,
    checkpoint: str | Path,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    report: str | Path | None = None,
    index: str | Path | None = None,
    search: SearchConfig | None = None,
) -> Evaluation:
    """Evaluate over the cluster; with `out`, write `metrics.json` and `predictions.parquet` there.

    Args:
        report: directory or URI for `report.html`, `report.json` and figures.
        index: index of the same checkpoint; the queries are also searched for in all its videos.
        search: how the index is searched.

    Raises:
        VmrError: an input is missing or malformed, the features are not of the checkpoint's kind, the
            index is of another checkpoint, or fewer than two annotated videos are embedded (the shuffled
            control needs two).
    """
    from vmr_ray.cluster import connect

    if not isinstance(annotations, AnnotationSet):
        for folder, name in ((out, "metrics.json"), (report, "report.json")):
            if folder is not None:
                refuse_input(join(folder, name), [annotations])
    inputs = open_inputs(features, annotations, checkpoint, config or EvaluateConfig())
    searcher = None if index is None else open_index(str(index), inputs.info, search)
    connect()
    table = answer_queries(inputs)
    result = _measure(inputs, table, searcher)
    if out is not None:
        with replacing(*filesystem(join(out, "predictions.parquet"))) as stream:
            pq.write_table(table, stream)
        write_json(join(out, "metrics.json"), asdict(result))
    if report is not None:
        # Matplotlib takes a second to import, which only a report is worth.
        from vmr_ray.evaluation.report.build import build_report

        build_report(str(report), result, table, inputs, None if index is None else str(index))
    return result


def _measure(inputs: EvaluationInputs, table: pa.Table, searcher: Searcher | None) -> Evaluation:
    config, truths = inputs.config, table["truth"].to_pylist()
    return Evaluation(
        model=moment_metrics(_spans(table, "predicted"), truths, config.top_k, config.thresholds),
        constant=constant_metrics(inputs.info.constants, truths, table["duration"].to_pylist()),
        shuffled=moment_metrics(_spans(table, "shuffled"), truths, config.top_k, config.thresholds),
        queries=len(truths),
        videos=len(inputs.groups),
        without_features=len(inputs.annotations.annotations) - len(truths),
        checkpoint=inputs.checkpoint,
        version=inputs.info.version,
        corpus=None if searcher is None else search_corpus(searcher, table, config.corpus_queries),
        qvhighlights=_measure_qvhighlights(inputs, table) if inputs.is_qvhighlights else None,
        presence=_measure_presence(inputs, table),
    )


def _measure_presence(inputs: EvaluationInputs, table: pa.Table) -> PresenceMetrics | None:
    presence, shown = inputs.info.presence, _best_scores(table, "predicted")
    # A query that the other video has too may be true of it.
    rows = zip(table["video_id"].to_pylist(), table["query"].to_pylist(), strict=True)
    foreign = [all(query != a.query for a in inputs.groups[inputs.others[video]]) for video, query in rows]
    if not any(foreign):
        return None
    others, diagram = presence_metrics(shown, _best_scores(table, "shuffled")[foreign], presence)
    absent = table["absent_score"].drop_null().to_numpy()
    lost = None
    if presence is not None:
        improbable = presence.probabilities(shown) < presence.min_probability
        hit = best_iou(_spans(table, "predicted"), table["truth"].to_pylist(), 1)[:, 0] >= 0.5
        lost = 100 * float((hit & improbable).mean())
    return PresenceMetrics(
        others, presence_metrics(shown, absent, presence)[0] if len(absent) else {}, lost, diagram
    )


def _best_scores(table: pa.Table, column: str) -> np.ndarray:
    """[Q] the score of every query's first answer."""
    return np.array([ranked[0][2] for ranked in table[column].to_pylist()])


def _measure_qvhighlights(inputs: EvaluationInputs, table: pa.Table) -> QVHighlightsMetrics:
    truths, durations = table["truth"].to_pylist(), table["duration"].to_pylist()
    constants = [[ConstantSpan(*answer) for answer in ranked] for ranked in inputs.info.constants.values()]
    model = qvhighlights_metrics(_spans(table, "predicted"), truths)
    shuffled = qvhighlights_metrics(_spans(table, "shuffled"), truths)
    saliency, scores = table["saliency"].to_pylist(), table["clip_scores"].to_pylist()
    rated = [i for i in range(len(table)) if saliency[i] and scores[i]]
    if rated:
        true = [saliency[i] for i in rated]
        shuffled_scores = table["shuffled_clip_scores"].to_pylist()
        model |= saliency_metrics([scores[i] for i in rated], true)
        shuffled |= saliency_metrics([shuffled_scores[i] for i in rated], true)
    return QVHighlightsMetrics(
        model, best_constant_metrics(constants, truths, durations), shuffled, len(rated)
    )


def _spans(table: pa.Table, column: str) -> list[np.ndarray]:
    """Every query's ranked spans [p, 2], without their scores."""
    return [np.asarray(ranked).reshape(-1, 3)[:, :2] for ranked in table[column].to_pylist()]
