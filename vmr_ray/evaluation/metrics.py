"""Moment retrieval metrics: pure functions of arrays.

Spans are `(start, end)` in seconds. Predictions are ranked, best first; a query without predictions is a
miss. IoU is continuous (no +1) and computed against the true times. Metrics are percentages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmr_ray.schema import Span

Array = NDArray[np.float64]

MAP_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))  # mAP is the mean over these
MAP_WINDOWS = 10  # predictions of a query that count for mAP

_RECALL = re.compile(r"(?:corpus_)?r(\d+)_at_(.+)")
_MAP = re.compile(r"(?:(short|middle|long)_)?map(?:_at_(.+))?")
_HIGHLIGHT = re.compile(r"hl_(map|hit1)_(.+)")
_HIGHLIGHT_LABELS = {"map": "mAP", "hit1": "HIT@1"}


def iou(a: ArrayLike, b: ArrayLike) -> Array:
    """Temporal IoU of spans `[..., n, 2]` with spans `[..., m, 2]`: `[..., n, m]`, in [0, 1]."""
    a, b = np.asarray(a, dtype=float)[..., :, None, :], np.asarray(b, dtype=float)[..., None, :, :]
    return _iou(a[..., 0], a[..., 1], b[..., 0], b[..., 1])


def moment_metrics(
    predictions: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    ks: Sequence[int] = (1, 5),
    thresholds: Sequence[float] = (0.3, 0.5, 0.7),
) -> dict[str, float]:
    """`r{k}_at_{threshold}` (R@k IoU=threshold) for every pair of the two, and `miou`.

    R@k is the percentage of queries with a hit among the top k predictions; mIoU is the mean IoU of the top
    prediction. Of several true spans, the one of highest IoU counts.

    Args:
        predictions: a query's ranked spans, `[p, 2]` each; p may be 0.
        truths: a query's true spans, `[g, 2]` each, g >= 1.

    Raises:
        ValueError: no queries, unequal numbers of them, spans not `[n, 2]`, or a query without a true span.
    """
    best = best_iou(predictions, truths, max(ks))
    recalls = {f"r{k}_at_{t}": recall(best, k, t) for k in ks for t in thresholds}
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

    Raises:
        ValueError: as `moment_metrics`.
    """
    check_lengths(predictions, truths)
    # A span in a wrong video becomes empty: it keeps its rank and hits nothing.
    spans = [
        [(start, end) if video == right else (0.0, 0.0) for video, start, end in ranked[: max(ks)]]
        for ranked, (right, _) in zip(predictions, truths, strict=True)
    ]
    best = best_iou(spans, [true for _, true in truths], max(ks))
    return {f"corpus_r{k}_at_{t}": recall(best, k, t) for k in ks for t in thresholds}


def candidate_recall(candidates: Sequence[Collection[str]], video_ids: Sequence[str]) -> float:
    """Recall of stage 1: the percentage of queries whose video is among their candidates.

    Raises:
        ValueError: no queries, or unequal numbers of them.
    """
    check_lengths(candidates, video_ids)
    return 100 * float(
        np.mean([video in passed for video, passed in zip(video_ids, candidates, strict=True)])
    )


def average_precision(
    predictions: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    thresholds: Sequence[float] = MAP_THRESHOLDS,
    windows: int = MAP_WINDOWS,
) -> Array:
    """Interpolated AP (VOC 2011) of the top `windows` predictions: `[queries, thresholds]`, in [0, 1].

    Each prediction, in rank order, is matched with the unmatched true span of highest IoU if that reaches
    the threshold. Arguments and errors as `moment_metrics`.
    """
    overlap = _overlaps(predictions, truths, windows)
    queries, ranks, truths_limit = overlap.shape
    counts = np.array([len(as_spans(t)) for t in truths])
    levels = np.asarray(thresholds, dtype=float)
    free = np.ones((queries, len(levels), truths_limit), dtype=bool)
    hits = np.zeros((queries, len(levels), ranks))
    for rank in range(ranks):
        unmatched_iou = np.where(free, overlap[:, None, rank], -1.0)
        nearest = unmatched_iou.argmax(-1)[..., None]
        hit = np.take_along_axis(unmatched_iou, nearest, -1) >= levels[:, None]
        np.put_along_axis(free, nearest, np.take_along_axis(free, nearest, -1) & ~hit, -1)
        hits[..., rank] = hit[..., 0]
    precision = hits.cumsum(-1) / np.arange(1, ranks + 1)
    # Interpolated: the best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    return (hits * precision).sum(-1) / counts[:, None]


def recall(best: Array, k: int, threshold: float) -> float:
    """R@k in percent, from the IoU of the ranked predictions `best` `[queries, >= k]` (see `best_iou`)."""
    return 100 * float((best[:, :k] >= threshold).any(1).mean())


def best_iou(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], k: int) -> Array:
    """IoU of the top k predictions with the best of the true spans: `[queries, k]`; 0 without prediction."""
    return _overlaps(predictions, truths, k).max(-1)


def as_spans(spans: ArrayLike) -> Array:
    """Spans as an array `[n, 2]`, also if there are none. Raises ValueError for another shape."""
    array = np.asarray(spans, dtype=float)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"spans must be [n, 2], got {list(array.shape)}")
    return array


def check_lengths(first: Sequence[object] | Array, second: Sequence[object] | Array) -> None:
    """Raises ValueError if both are empty, or their lengths differ."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"need as many of both, and at least one: got {len(first)} and {len(second)}")


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
    or the highest R@1 at IoU=`threshold`. The search tries `steps` fractions of the duration (evenly spaced)
    and `steps` times in seconds (quantiles of the spans' own times), and keeps the better of the two.

    Raises:
        ValueError: no spans, or a span without a duration above 0.
    """
    spans, durations = as_spans(spans), np.asarray(durations, dtype=float)
    check_lengths(spans, durations)
    if not (durations > 0).all():
        raise ValueError("durations must be above 0, in seconds, for every span")
    fractions = np.linspace(0, 1, steps + 1)
    seconds = np.unique(np.quantile(spans, fractions))
    ones = np.ones_like(durations)
    by_fraction = _best_on_grid(fractions, spans / durations[:, None], ones, threshold)
    by_second = _best_on_grid(seconds, spans, durations, threshold)
    _, (start, end), relative = max((*by_fraction, True), (*by_second, False), key=lambda best: best[0])
    return ConstantSpan(start, end, relative)


def metric_label(name: str) -> str:
    """The name that papers use: `r1_at_0.5` -> `R@1 IoU=0.5`, `long_map` -> `mAP, long moments`."""
    if match := _RECALL.fullmatch(name):
        return f"R@{match[1]} IoU={match[2]}"
    if match := _HIGHLIGHT.fullmatch(name):
        return f"highlight {_HIGHLIGHT_LABELS[match[1]]}, {match[2].replace('_', ' ')}"
    if match := _MAP.fullmatch(name):
        length, threshold = match.groups()
        return "mAP" + (f" IoU={threshold}" if threshold else "") + (f", {length} moments" if length else "")
    return {"miou": "mIoU"}.get(name, name)


def _best_on_grid(grid: Array, spans: Array, durations: Array, threshold: float | None) -> tuple[float, Span]:
    """The best score and the span, among those between two times of `grid`, that has it."""
    first, last = np.triu_indices(len(grid), k=1)
    true_start, true_end = spans.T.copy()
    blocks = max(1, len(first) * len(spans) // 1_000_000)  # limits the memory
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


def _overlaps(predictions: Sequence[ArrayLike], truths: Sequence[ArrayLike], k: int) -> Array:
    """IoU of the top k predictions with the true spans: `[queries, k, truths]`; 0 where either is missing."""
    check_lengths(predictions, truths)
    true = [as_spans(t) for t in truths]
    if not all(map(len, true)):
        raise ValueError("a query has no true span")
    return iou(_padded([as_spans(p) for p in predictions], k), _padded(true, max(map(len, true))))


def _padded(spans: Sequence[Array], length: int) -> Array:
    # An empty span has IoU 0 with everything.
    padded = np.zeros((len(spans), length, 2))
    for row, values in zip(padded, spans, strict=True):
        row[: len(values)] = values[:length]
    return padded
