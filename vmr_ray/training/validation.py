"""Validation: the metrics of the held-out videos, and what a score says about a query being shown at all."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from vmr_ray.evaluation.metrics import moment_metrics
from vmr_ray.model.inputs import Example
from vmr_ray.model.predictor import Predictor, retrieve
from vmr_ray.model.presence import Presence, fit_presence
from vmr_ray.training.augment import take_queries
from vmr_ray.training.processes import gather_objects

_FOREIGN_QUERIES = 4  # of a video, which are asked of another one; the calibration has few numbers to fit


def validate(
    predictor: Predictor, batches: Iterator[list[Example]], rank: int, world: int, nms: float
) -> tuple[dict[str, float], Presence | None]:
    """Moment metrics (percent) of all rows, and the calibration of their scores, if they tell own videos from
    others. Every process sees all rows and computes its share of them.

    The queries of a training without annotations are made up, and their scores are not those of sentences:
    the checkpoint's calibration then stays as it is.
    """
    predictions: list[np.ndarray] = []
    truths: list[np.ndarray] = []
    shown: list[float] = []
    absent: list[float] = []
    for examples in batches:
        # Shared out by name, because the processes read the rows in different orders.
        own = [e for e in examples if zlib.crc32(e.video_id.encode()) % world == rank]
        if own:
            answers = retrieve(predictor, own, 5, nms)
            predictions += [np.asarray(spans)[:, :2] for spans in answers]
            truths += [np.asarray(spans) for e in own for spans in e.spans]
            shown += [spans[0][2] for spans in answers]
        if foreign := in_other_videos(own):
            absent += [spans[0][2] for spans in retrieve(predictor, foreign, 1, nms)]
    metrics = moment_metrics(predictions, truths) if truths else {}
    parts = gather_objects((len(truths), metrics, shown, absent), world)
    measured = [(count, row) for count, row, _, _ in parts if count]
    total = sum(count for count, _ in measured)
    mean = {key: sum(count * row[key] for count, row in measured) / total for key in measured[0][1]}
    if predictor.info.similarity:
        return mean, predictor.info.presence
    return mean, fit_presence(*([score for part in parts for score in part[kind]] for kind in (2, 3)))


def in_other_videos(examples: Sequence[Example], limit: int = _FOREIGN_QUERIES) -> list[Example]:
    """The next video of the list with up to `limit` queries of each video, which are not its own queries too.

    The spans are those of the queries' own videos.
    """
    result = []
    for example, other in zip(examples, [*examples[1:], *examples[:1]], strict=True):
        known = set(other.queries)
        kept = [i for i, query in enumerate(example.queries) if query not in known][:limit]
        if kept and other is not example:
            asked = take_queries(example, kept)
            result.append(replace(other, queries=asked.queries, tokens=asked.tokens, spans=asked.spans))
    return result
