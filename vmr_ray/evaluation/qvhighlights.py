"""The metrics of the QVHighlights benchmark: moment retrieval by mAP and R@1, highlights by saliency.

Pure functions of arrays. Times are seconds, metrics are percentages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmr_ray.evaluation.metrics import (
    MAP_THRESHOLDS,
    Array,
    ConstantSpan,
    as_spans,
    average_precision,
    best_iou,
    check_lengths,
    recall,
)
from vmr_ray.schema import CLIP_S

# As in the benchmark's evaluator.
LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150)}  # seconds, (above, up to]
SALIENCY_LEVELS = {"fair": 2, "good": 3, "very_good": 4}  # lowest score of a relevant clip


def qvhighlights_metrics(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike]) -> dict[str, float]:
    """The benchmark's moment metrics, over all queries and by moment length.

    `map` (mean over IoU .5:.05:.95), `map_at_{t}` and `r1_at_{t}`; the same with the prefix `short_`,
    `middle_` or `long_` over the queries that have true spans of that length, against those alone.
    A length that no true span has is left out. Arguments and errors as `moment_metrics`.
    """
    metrics = _detection(predictions, truths, "")
    for name, (above, up_to) in LENGTHS.items():
        lengths = [np.diff(spans, axis=-1)[:, 0] for spans in map(as_spans, truths)]
        kept = [as_spans(t)[(above < n) & (n <= up_to)] for t, n in zip(truths, lengths, strict=True)]
        if chosen := [i for i, spans in enumerate(kept) if len(spans)]:
            metrics |= _detection([predictions[i] for i in chosen], [kept[i] for i in chosen], f"{name}_")
    return metrics


def saliency_metrics(scores: Sequence[ArrayLike], saliency: Sequence[ArrayLike]) -> dict[str, float]:
    """The benchmark's highlight metrics.

    `hl_map_{level}` is the mean over queries and annotators, `hl_hit1_{level}` the percentage of
    queries whose top clip is relevant to any annotator; levels are fair, good and very_good.

    Args:
        scores: a query's predicted clip scores, `[c]`, c >= 1; clips beyond those of `saliency` are cut off,
            missing ones score 0.
        saliency: a query's true saliency, `[clips, annotators]`, 0 to 4.

    Raises:
        ValueError: no queries, or unequal numbers of them.
    """
    check_lengths(scores, saliency)
    ranked = [np.asarray(values, dtype=float) for values in scores]
    true = [np.asarray(rated, dtype=float) for rated in saliency]
    top = np.array([values.argmax() for values in ranked])
    # Padding ranks last and is relevant to no annotator.
    clips = max(map(len, true))
    predicted = np.full((len(true), clips), -np.inf)
    padded = np.zeros((len(true), clips, true[0].shape[1]))
    for i, (values, rated) in enumerate(zip(ranked, true, strict=True)):
        predicted[i, : len(rated)] = 0
        predicted[i, : min(len(values), len(rated))] = values[: len(rated)]
        padded[i, : len(rated)] = rated
    at_top = padded[np.arange(len(true)), np.minimum(top, clips - 1)]
    at_top[top >= clips] = 0
    metrics = {}
    for level, least in SALIENCY_LEVELS.items():
        metrics[f"hl_map_{level}"] = 100 * float(_clip_precision(predicted, padded >= least).mean())
        metrics[f"hl_hit1_{level}"] = 100 * float((at_top >= least).any(1).mean())
    return metrics


def clip_scores(membership: ArrayLike, edges: ArrayLike, clips: int) -> Array:
    """The score of each of the video's first `clips` clips of CLIP_S seconds: its mean membership over time.

    A clip's part that no frame covers is left out of its mean; a clip that no frame covers scores 0.

    Args:
        membership: of T frames, in [0, 1].
        edges: `[T + 1]` seconds; frame i covers `[edges[i], edges[i+1])`.
    """
    membership, edges = np.asarray(membership, dtype=float), np.asarray(edges, dtype=float)
    integral = np.concatenate([[0.0], np.cumsum(membership * np.diff(edges))])
    bounds = np.arange(clips + 1) * CLIP_S
    sums = np.diff(np.interp(bounds, edges, integral))
    seconds = np.diff(np.clip(bounds, edges[0], edges[-1]))
    return np.divide(sums, seconds, out=np.zeros(clips), where=seconds > 0)


def best_constant_metrics(
    constants: Sequence[Sequence[ConstantSpan]], truths: Sequence[ArrayLike], durations: Sequence[float]
) -> dict[str, float]:
    """`qvhighlights_metrics` of constant answers: each metric with the ranked list that does best in it.

    Args:
        constants: ranked lists of constant answers.
        truths: as in `qvhighlights_metrics`.
        durations: of every query's video.
    """
    best: dict[str, float] = {}
    for answers in constants:
        predictions = [[answer.predict(duration) for answer in answers] for duration in durations]
        for name, value in qvhighlights_metrics(predictions, truths).items():
            best[name] = max(value, best.get(name, 0.0))
    return best


def _detection(
    predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], prefix: str
) -> dict[str, float]:
    """mAP and R@1 at every threshold; `prefix` goes before the names."""
    maps = 100 * average_precision(predictions, truths).mean(0)
    best = best_iou(predictions, truths, 1)
    metrics = {f"{prefix}map": float(maps.mean())}
    for threshold, value in zip(MAP_THRESHOLDS, maps, strict=True):
        metrics[f"{prefix}map_at_{threshold}"] = float(value)
        metrics[f"{prefix}r1_at_{threshold}"] = recall(best, 1, threshold)
    return metrics


def _clip_precision(scores: Array, relevant: NDArray[np.bool_]) -> Array:
    """Interpolated AP of clips ranked by `scores` `[q, c]`, `relevant` `[q, c, annotator]`: `[q, annotator]`.

    As in the benchmark's evaluator, precision is averaged over the distinct recalls, so clips of equal score
    count as one step however many of them are relevant.
    """
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, 1)
    last = np.ones((*scores.shape, 1), dtype=bool)  # whether the next clip has another score
    last[:, :-1, 0] = ranked[:, 1:] != ranked[:, :-1]
    hits = np.take_along_axis(relevant, order[..., None], 1).cumsum(1)
    precision = np.where(last, hits / np.arange(1, scores.shape[1] + 1)[:, None], 0)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    reached = np.maximum.accumulate(np.where(last, hits, 0), 1)
    steps = np.diff(reached, axis=1, prepend=0) > 0
    return (precision * steps).sum(1) / np.maximum(steps.sum(1), 1)
