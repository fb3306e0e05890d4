"""What a model must beat: constant answers fitted on train, and itself with the videos shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmr_ray.evaluation.metrics import ConstantSpan, best_constant_span, iou, moment_metrics
from vmr_ray.schema import Span

THRESHOLDS = (0.3, 0.5, 0.7)
_MOST = 4000  # spans are enough to fit five numbers


def fit_constants(spans: Sequence[Span], durations: Sequence[float], answers: int = 5) -> dict[str, Any]:
    """The constant answers that do best on train, one ranked list a metric.

    The lists are greedy: the next answer is the best one for the queries that the earlier ones miss,
    so R@5 has a fair rival too. JSON-ready: `{"0.5": [[start, end, relative], ...], ..., "miou": [...]}`.
    """
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(spans))[:_MOST]
    true, lengths = np.asarray(spans, float)[chosen], np.asarray(durations, float)[chosen]
    fitted: dict[str, Any] = {}
    for name, threshold in [("miou", None), *((str(t), t) for t in THRESHOLDS)]:
        left = np.ones(len(true), bool)
        ranked: list[list[float | bool]] = []
        for _ in range(1 if threshold is None else answers):
            if not left.any():
                break
            best = best_constant_span(true[left], lengths[left], threshold)
            ranked.append([best.start, best.end, best.relative])
            if threshold is not None:
                said = np.array([best.predict(d) for d in lengths])
                left &= iou(said[:, None], true[:, None])[:, 0, 0] < threshold
        fitted[name] = ranked
    return fitted


def constant_metrics(
    fitted: dict[str, Any], truths: Sequence[Any], durations: Sequence[float]
) -> dict[str, float]:
    """`moment_metrics` of the constant answers, each metric with the list fitted for it."""
    found: dict[str, float] = {}
    for name, ranked in fitted.items():
        answers = [ConstantSpan(*answer) for answer in ranked]
        said = [[answer.predict(duration) for answer in answers] for duration in durations]
        metrics = moment_metrics(said, truths)
        found |= {k: v for k, v in metrics.items() if k.endswith(f"_{name}") or k == name}
    return found


def derangement(n: int, seed: int = 0) -> list[int]:
    """A random order of n >= 2 things in which none keeps its place (a cycle through all of them)."""
    order = np.random.default_rng(seed).permutation(n)
    moved = np.empty(n, int)
    moved[order] = np.roll(order, 1)
    return moved.tolist()
