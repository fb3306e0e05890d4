"""What a model must beat: constant answers fitted on train, and itself with the videos shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmr_ray.evaluation.metrics import ConstantSpan, best_constant_span, iou, moment_metrics
from vmr_ray.schema import Span

# The fields of an Evaluation that hold metrics, and how they are labelled.
SYSTEMS = {"model": "model", "constant": "best constant span", "shuffled": "videos shuffled"}
THRESHOLDS = (0.3, 0.5, 0.7)
_MAX_SPANS = 4000  # enough to fit a few numbers


def fit_constants(spans: Sequence[Span], durations: Sequence[float], answers: int = 5) -> dict[str, Any]:
    """The constant answers that do best on train: one ranked list a metric, of up to `answers` each.

    The lists are greedy: the next answer is the best one for the queries that the earlier ones miss, so that
    R@5 has a fair rival too. The value can be written as JSON:
    `{"0.5": [[start, end, relative], ...], ..., "miou": [...]}`; see `ConstantSpan`.

    Args:
        spans: of every query, in seconds.
        durations: of every query's video, in seconds.
    """
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(spans))[:_MAX_SPANS]
    true, lengths = np.asarray(spans, float)[chosen], np.asarray(durations, float)[chosen]
    fitted: dict[str, Any] = {}
    for name, threshold in [("miou", None), *((str(t), t) for t in THRESHOLDS)]:
        missed = np.ones(len(true), bool)
        ranked: list[list[float | bool]] = []
        for _ in range(1 if threshold is None else answers):
            if not missed.any():
                break
            best = best_constant_span(true[missed], lengths[missed], threshold)
            ranked.append([best.start, best.end, best.relative])
            if threshold is not None:
                predicted = np.array([best.predict(d) for d in lengths])
                missed &= iou(predicted[:, None], true[:, None])[:, 0, 0] < threshold
        fitted[name] = ranked
    return fitted


def constant_metrics(
    fitted: dict[str, Any], truths: Sequence[Any], durations: Sequence[float]
) -> dict[str, float]:
    """`moment_metrics` of constant answers, each metric with the list that `fit_constants` fitted for it.

    Args:
        truths: a query's true spans, `[g, 2]` seconds.
        durations: of every query's video, in seconds.
    """
    result: dict[str, float] = {}
    for name, ranked in fitted.items():
        answers = [ConstantSpan(*answer) for answer in ranked]
        predictions = [[answer.predict(duration) for answer in answers] for duration in durations]
        metrics = moment_metrics(predictions, truths)
        result |= {k: v for k, v in metrics.items() if k.endswith(f"_{name}") or k == name}
    return result


def derangement(n: int, seed: int = 0) -> list[int]:
    """A random order of n >= 2 items in which none keeps its place (one cycle through all of them)."""
    order = np.random.default_rng(seed).permutation(n)
    moved = np.empty(n, int)
    moved[order] = np.roll(order, 1)
    return moved.tolist()
