"""Moment retrieval metrics: pure functions of arrays.

Spans are `(start, end)` in seconds. Predictions are ranked, best first; a query without predictions
is a miss. IoU is continuous (no +1) and taken against the true times. All figures are percent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmr_ray.schema import Span

Array = NDArray[np.float64]

# QVHighlights (Lei et al., NeurIPS 2021): thresholds, windows and length ranges of its evaluator.
QV_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
QV_WINDOWS = 10
QV_LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150)}  # (above, up to] seconds
QV_SALIENCY = {"fair": 2, "good": 3, "very_good": 4}  # the least score of a relevant clip


def iou(a: ArrayLike, b: ArrayLike) -> Array:
    """Temporal IoU of spans `[..., n, 2]` with spans `[..., m, 2]`: `[..., n, m]`, in [0, 1]."""
    a, b = np.asarray(a, dtype=float)[..., :, None, :], np.asarray(b, dtype=float)[..., None, :, :]
    return _iou(a[..., 0], a[..., 1], b[..., 0], b[..., 1])


def recall_at(
    predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], k: int, threshold: float
) -> float:
    """R@k IoU=threshold: the percentage of queries with a hit among the top k predictions.

    Args:
        predictions: a query's ranked spans, `[p, 2]` each; p may be 0.
        truths: a query's true spans, `[g, 2]` each, g >= 1; a hit of any of them counts.

    Raises:
        ValueError: no queries, unequal numbers of them, spans not `[n, 2]`, or a query without a true span.
    """
    return _recall(_best_iou(predictions, truths, k), k, threshold)


def mean_iou(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike]) -> float:
    """mIoU: the mean IoU of the top prediction with the best of its true spans; as `recall_at`."""
    return 100 * float(_best_iou(predictions, truths, 1).mean())


def moment_metrics(
    predictions: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5),
    thresholds: Sequence[float] = (0.3, 0.5, 0.7),
) -> dict[str, float]:
    """`r{k}_at_{threshold}` for every pair, and `miou`; arguments and errors as `recall_at`."""
    best = _best_iou(predictions, truths, max(ks))
    recalls = {f"r{k}_at_{t}": _recall(best, k, t) for k in ks for t in thresholds}
    return recalls | {"miou": 100 * float(best[:, 0].mean())}


def corpus_metrics(
    predictions: Sequence[Sequence[tuple[str, float, float]]],
    truths: Sequence[tuple[str, ArrayLike]],
    ks: Sequence[int] = (1, 5, 10, 100),
    thresholds: Sequence[float] = (0.5, 0.7),
) -> dict[str, float]:
    """Video corpus moment retrieval (VCMR): `corpus_r{k}_at_{threshold}`; a hit needs the right video too.

    Args:
        predictions: a query's ranked `(video_id, start, end)`.
        truths: a query's `(video_id, spans [g, 2])`.
    """
    _check_lengths(predictions, truths)
    # A span in a wrong video becomes empty: it keeps its rank and hits nothing.
    spans = [
        [(start, end) if video == right else (0.0, 0.0) for video, start, end in ranked[: max(ks)]]
        for ranked, (right, _) in zip(predictions, truths, strict=True)
    ]
    best = _best_iou(spans, [true for _, true in truths], max(ks))
    return {f"corpus_r{k}_at_{t}": _recall(best, k, t) for k in ks for t in thresholds}


def metric_label(name: str) -> str:
    """`r1_at_0.5` -> `R@1 IoU=0.5`, for people."""
    recall, _, threshold = name.removeprefix("corpus_").partition("_at_")
    return f"R@{recall[1:]} IoU={threshold}" if threshold else {"miou": "mIoU"}.get(name, name)


def candidate_recall(candidates: Sequence[Collection[str]], video_ids: Sequence[str]) -> float:
    """Recall of the first stage: the percentage of queries whose video is among their candidates."""
    _check_lengths(candidates, video_ids)
    return 100 * float(np.mean([video in found for video, found in zip(video_ids, candidates, strict=True)]))


def average_precision(
    predictions: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    thresholds: Sequence[float] = QV_THRESHOLDS,
    windows: int = QV_WINDOWS,
) -> Array:
    """Interpolated AP (VOC 2011) of the top `windows` predictions: `[queries, thresholds]`, in [0, 1].

    Each prediction, in rank order, takes the unmatched true span of highest IoU, if that reaches the
    threshold. Arguments and errors as `recall_at`.
    """
    overlap = _overlaps(predictions, truths, windows)
    queries, ranks, most = overlap.shape
    counts = np.array([len(_spans(t)) for t in truths])
    levels = np.asarray(thresholds, dtype=float)
    free = np.ones((queries, len(levels), most), dtype=bool)
    hits = np.zeros((queries, len(levels), ranks))
    for rank in range(ranks):
        open_iou = np.where(free, overlap[:, None, rank], -1.0)
        taken = open_iou.argmax(-1)[..., None]
        hit = np.take_along_axis(open_iou, taken, -1) >= levels[:, None]
        np.put_along_axis(free, taken, np.take_along_axis(free, taken, -1) & ~hit, -1)
        hits[..., rank] = hit[..., 0]
    precision = hits.cumsum(-1) / np.arange(1, ranks + 1)
    # Interpolated: the best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    return (hits * precision).sum(-1) / counts[:, None]


def qvhighlights_metrics(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike]) -> dict[str, float]:
    """The moment metrics of the QVHighlights evaluator, over all queries and by moment length.

    `map` (mean over IoU .5:.05:.95), `map_at_{t}` and `r1_at_{t}`; the same with the prefix `short_`,
    `middle_` or `long_` over the queries that have true spans of that length, against those alone.
    Arguments and errors as `recall_at`; a length that no true span has is left out.
    """
    metrics = _detection(predictions, truths, "")
    for name, (above, up_to) in QV_LENGTHS.items():
        lengths = [np.diff(spans, axis=-1)[:, 0] for spans in map(_spans, truths)]
        kept = [_spans(t)[(above < n) & (n <= up_to)] for t, n in zip(truths, lengths, strict=True)]
        if chosen := [i for i, spans in enumerate(kept) if len(spans)]:
            metrics |= _detection([predictions[i] for i in chosen], [kept[i] for i in chosen], f"{name}_")
    return metrics


def saliency_metrics(scores: Sequence[ArrayLike], saliency: Sequence[ArrayLike]) -> dict[str, float]:
    """The highlight metrics of the QVHighlights evaluator.

    `hl_map_{level}` is the mean over queries and annotators, `hl_hit1_{level}` the percentage of
    queries whose top clip is relevant to any annotator; levels are fair, good and very_good.

    Args:
        scores: a query's predicted clip scores, `[c]`; clips beyond those of `saliency` are cut off,
            missing ones score 0.
        saliency: a query's true saliency, `[clips, annotators]`, 0 to 4.

    Raises:
        ValueError: no queries, or unequal numbers of them.
    """
    _check_lengths(scores, saliency)
    found = [np.asarray(values, dtype=float) for values in scores]
    true = [np.asarray(rated, dtype=float) for rated in saliency]
    top = np.array([values.argmax() for values in found])
    # Padding ranks last and is relevant to nobody.
    clips = max(map(len, true))
    predicted = np.full((len(true), clips), -np.inf)
    padded = np.zeros((len(true), clips, true[0].shape[1]))
    for i, (values, rated) in enumerate(zip(found, true, strict=True)):
        predicted[i, : len(rated)] = 0
        predicted[i, : min(len(values), len(rated))] = values[: len(rated)]
        padded[i, : len(rated)] = rated
    at_top = padded[np.arange(len(true)), np.minimum(top, clips - 1)]
    at_top[top >= clips] = 0
    metrics = {}
    for level, least in QV_SALIENCY.items():
        metrics[f"hl_map_{level}"] = 100 * float(_clip_precision(predicted, padded >= least).mean())
        metrics[f"hl_hit1_{level}"] = 100 * float((at_top >= least).any(1).mean())
    return metrics


@dataclass(frozen=True)
class ConstantSpan:
    """One answer for every query: in seconds, or as fractions of the duration if `relative`."""

    start: float
    end: float
    relative: bool

    def predict(self, duration: float) -> Span:
        """The span in a video of `duration` seconds, clipped to it."""
        scale = duration if self.relative else 1.0
        return min(self.start * scale, duration), min(self.end * scale, duration)


def best_constant_span(
    spans: ArrayLike, durations: ArrayLike, threshold: float | None = None, steps: int = 100
) -> ConstantSpan:
    """The constant answer that does best on `spans` `[n, 2]` of videos of `durations` `[n]` seconds.

    A baseline that sees neither video nor query: what exceeds it was learned. Best is the highest mIoU,
    or the highest R@1 at IoU=`threshold`; the search is over `steps` fractions of the duration (evenly
    spaced) and `steps` times in seconds (quantiles of the spans' own), and the better of the two is kept.

    Raises:
        ValueError: no spans, or not one duration above 0 a span.
    """
    spans, durations = _spans(spans), np.asarray(durations, dtype=float)
    _check_lengths(spans, durations)
    if not (durations > 0).all():
        raise ValueError("durations must be above 0, in seconds, for every span")
    fractions = np.linspace(0, 1, steps + 1)
    seconds = np.unique(np.quantile(spans, fractions))
    ones = np.ones_like(durations)
    by_fraction = _best_on_grid(fractions, spans / durations[:, None], ones, threshold)
    by_second = _best_on_grid(seconds, spans, durations, threshold)
    _, (start, end), relative = max((*by_fraction, True), (*by_second, False), key=lambda found: found[0])
    return ConstantSpan(start, end, relative)


def _best_on_grid(grid: Array, spans: Array, durations: Array, threshold: float | None) -> tuple[float, Span]:
    first, last = np.triu_indices(len(grid), k=1)
    true_start, true_end = spans.T.copy()
    blocks = max(1, len(first) * len(spans) // 1_000_000)  # bounds the memory
    scores = []
    for pairs in np.array_split(np.stack([grid[first], grid[last]]), blocks, axis=1):
        start, end = np.minimum(pairs[..., None], durations)
        overlap = _iou(start, end, true_start, true_end)
        scores.append((overlap if threshold is None else overlap >= threshold).mean(1))
    score = np.concatenate(scores)
    at = int(score.argmax())
    return float(score[at]), (float(grid[first[at]]), float(grid[last[at]]))


def _iou(start_a: Array, end_a: Array, start_b: Array, end_b: Array) -> Array:
    """IoU of spans given by starts and ends that broadcast."""
    overlap = np.maximum(np.minimum(end_a, end_b) - np.maximum(start_a, start_b), 0)
    # The hull of two spans that overlap is their union; where they do not, the IoU is 0 anyway.
    hull = np.maximum(end_a, end_b) - np.minimum(start_a, start_b)
    return overlap / np.maximum(hull, np.finfo(float).tiny)


def _detection(
    predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], prefix: str
) -> dict[str, float]:
    maps = 100 * average_precision(predictions, truths).mean(0)
    best = _best_iou(predictions, truths, 1)
    metrics = {f"{prefix}map": float(maps.mean())}
    for threshold, value in zip(QV_THRESHOLDS, maps, strict=True):
        metrics[f"{prefix}map_at_{threshold}"] = float(value)
        metrics[f"{prefix}r1_at_{threshold}"] = _recall(best, 1, threshold)
    return metrics


def _clip_precision(scores: Array, relevant: NDArray[np.bool_]) -> Array:
    """Interpolated AP of clips ranked by `scores` `[q, c]`, `relevant` `[q, c, annotator]`: `[q, annotator]`.

    As the QVHighlights evaluator has it, precision is averaged over the distinct recalls, so clips of
    equal score count as one step however many of them are relevant.
    """
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, 1)
    last = np.ones((*scores.shape, 1), dtype=bool)  # whether the next clip has another score
    last[:, :-1, 0] = ranked[:, 1:] != ranked[:, :-1]
    found = np.take_along_axis(relevant, order[..., None], 1).cumsum(1)
    precision = np.where(last, found / np.arange(1, scores.shape[1] + 1)[:, None], 0)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    reached = np.maximum.accumulate(np.where(last, found, 0), 1)
    steps = np.diff(reached, axis=1, prepend=0) > 0
    return (precision * steps).sum(1) / np.maximum(steps.sum(1), 1)


def _recall(best: Array, k: int, threshold: float) -> float:
    return 100 * float((best[:, :k] >= threshold).any(1).mean())


def _best_iou(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], k: int) -> Array:
    """IoU of the top k predictions with the best of the true spans: `[queries, k]`, 0 where none is."""
    return _overlaps(predictions, truths, k).max(-1)


def _overlaps(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], k: int) -> Array:
    """IoU of the top k predictions with the true spans: `[queries, k, most truths]`, 0 where none is."""
    _check_lengths(predictions, truths)
    true = [_spans(t) for t in truths]
    if not all(map(len, true)):
        raise ValueError("a query has no true span")
    most = max(map(len, true))
    return iou(_padded([_spans(p) for p in predictions], k), _padded(true, most))


def _padded(spans: Sequence[Array], length: int) -> Array:
    # An empty span has IoU 0 with everything.
    padded = np.zeros((len(spans), length, 2))
    for row, values in zip(padded, spans, strict=True):
        row[: len(values)] = values[:length]
    return padded


def _spans(spans: ArrayLike) -> Array:
    array = np.asarray(spans, dtype=float)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"spans must be [n, 2], got {list(array.shape)}")
    return array


def _check_lengths(first: Sequence[object] | Array, second: Sequence[object] | Array) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"need as many of one as of the other, and at least one: {len(first)}, {len(second)}"
        )
