"""Search for the queries of an evaluation in a whole index."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.metrics import candidate_recall, corpus_metrics
from vmr_ray.evaluation.presence import auroc, calibration_error, rejection, reliability, together
from vmr_ray.evaluation.result import CorpusMetrics
from vmr_ray.model.checkpoint import CheckpointInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmr_ray.search.result import SearchResult
    from vmr_ray.search.searcher import Searcher

TOP_K = (1, 5, 10, 100)


def open_index(index: str, info: CheckpointInfo, config: SearchConfig | None) -> Searcher:
    """A searcher without the limits that protect a service from its clients.

    Raises:
        VmrError: there is no index, or it was made with another checkpoint than `info`.
    """
    from vmr_ray.search.searcher import Searcher

    unlimited = {"max_top_k": max(TOP_K), "max_query_chars": sys.maxsize}
    searcher = Searcher(index, (config or SearchConfig()).model_copy(update=unlimited))
    if searcher.version != info.version:
        raise VmrError(
            f"the index {index} was made with another checkpoint ({searcher.version[:12]}) than the one to "
            f"evaluate ({info.version[:12]}): index again, or evaluate that one"
        )
    return searcher


def search_corpus(searcher: Searcher, table: pa.Table, max_queries: int) -> CorpusMetrics:
    """Search the index for the queries of `table` (see `retrieval.answer_queries`).

    If there are more than `max_queries`, so many are drawn with a fixed seed.

    Raises:
        VmrError: none of the queries' videos is in the index.
    """
    indexed = {video["video_id"] for video in searcher.videos()}
    rows = [row for row in table.to_pylist() if row["video_id"] in indexed]
    if not rows:
        raise VmrError(
            f"none of the annotated videos is in the index {searcher.index}: index the same feature store"
        )
    drawn = np.random.default_rng(0).permutation(len(rows))[:max_queries]
    queries = [rows[i] for i in sorted(drawn)]
    # Improbable moments count too: what leaving them out costs is measured apart.
    results = [searcher.search(row["query"], max(TOP_K), min_probability=0) for row in queries]
    return CorpusMetrics(
        metrics=corpus_metrics(
            [[(m.video_id, m.start, m.end) for m in result.moments] for result in results],
            [(row["video_id"], row["truth"]) for row in queries],
            TOP_K,
        ),
        candidate_recall=candidate_recall(
            [result.candidates for result in results], [row["video_id"] for row in queries]
        ),
        candidates=float(np.mean([len(result.candidates) for result in results])),
        queries=len(queries),
        annotated=len(rows),
        not_indexed=len(table) - len(rows),
        videos=len(indexed),
        presence=_presence(searcher, results, [row["video_id"] for row in queries]),
    )


def _presence(
    searcher: Searcher, results: Sequence[SearchResult], video_ids: Sequence[str]
) -> dict[str, float] | None:
    """Whether an answer's probability tells if the index has the query's video; None without a calibration.

    Without that video the answer would have the same moments, but for those of the video.
    """
    presence = searcher.predictor.info.presence
    if presence is None:
        return None
    shown, absent = [], []
    windows = searcher.tables.count_windows()
    for result, video_id in zip(results, video_ids, strict=True):
        best: dict[str, float] = {}
        for moment in result.moments:
            best.setdefault(moment.video_id, moment.score)
        shown.append(presence.of_any(list(best.values()), windows))
        best.pop(video_id, None)
        absent.append(presence.of_any(list(best.values()), windows - 1))
    truth, probabilities = together(shown, absent)
    return {
        "auroc": 100 * auroc(truth, probabilities),
        "ece": 100 * calibration_error(reliability(truth, probabilities)),
        "rejection_at_95": 100 * rejection(truth, probabilities, 0.95),
    }
