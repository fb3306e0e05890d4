"""Answers -> the numbers of the report. Pure functions of arrays; times are seconds, metrics percentages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_ray.evaluation.controls import constant_metrics
from vmr_ray.evaluation.metrics import ConstantSpan, average_precision, iou, moment_metrics
from vmr_ray.schema import Span

Array = NDArray[np.float64]

LEVELS = np.arange(51) / 50  # of IoU, for the recall curve
LENGTHS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, np.inf)  # seconds
POSITIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the moment's centre, as a fraction of the video
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BIN_METRICS = ("r1_at_0.5", "r1_at_0.7", "miou")


@dataclass(frozen=True)
class Answers:
    """Q queries and their answers; spans are seconds, answers are ranked, best first."""

    video_ids: list[str]
    durations: list[float]
    queries: list[str]
    truths: list[list[Span]]  # at least one each
    predicted: list[list[tuple[float, float, float]]]  # (start, end, score)
    shuffled: list[list[tuple[float, float, float]]]

    def spans(self, column: str = "predicted") -> list[Array]:
        """The spans [p, 2] of `predicted` or `shuffled`, without their scores."""
        return [np.asarray(ranked, float).reshape(-1, 3)[:, :2] for ranked in getattr(self, column)]

    def best_iou(self, column: str = "predicted") -> Array:
        """[Q] IoU of the first answer with the best of its true spans; 0 where there is no answer."""
        return _top_iou(self.spans(column), self.truths)


def measure(answers: Answers, constants: dict[str, Any]) -> dict[str, Any]:
    """Everything that the report shows besides the metrics, as values for JSON.

    Args:
        constants: as `controls.fit_constants` returns them.
    """
    return {
        "recall_curve": recall_curves(answers, constants),
        "by_length": by_length(answers, constants),
        "by_position": by_position(answers, constants),
        "boundaries": boundaries(answers),
        "several_moments": several_moments(answers),
    }


def recall_curves(answers: Answers, constants: dict[str, Any]) -> dict[str, list[float]]:
    """R@1 at every level of `iou`, for `model`, `constant` and `shuffled`.

    At each level the constant is the one that does best there, so its curve is an upper bound.
    """

    def recall(best: Array) -> Array:
        return 100 * (best[:, None] >= LEVELS).mean(0)

    fitted = [ConstantSpan(*ranked[0]) for ranked in constants.values() if ranked]
    predictions = [[np.asarray([c.predict(d)]) for d in answers.durations] for c in fitted]
    curves = {
        "iou": LEVELS,
        "model": recall(answers.best_iou()),
        "shuffled": recall(answers.best_iou("shuffled")),
    }
    if predictions:
        recalls = [recall(_top_iou(spans, answers.truths)) for spans in predictions]
        curves["constant"] = np.max(recalls, axis=0)
    return {name: curve.tolist() for name, curve in curves.items()}


def by_length(answers: Answers, constants: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of the queries by the length of their (longest) true span, in seconds."""
    lengths = np.array([end - start for start, end in map(longest, answers.truths)])
    return _binned(lengths, LENGTHS, answers, constants, _seconds)


def by_position(answers: Answers, constants: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of the queries by where in the video the centre of their (longest) true span lies."""
    centres = np.array([sum(longest(truth)) / 2 for truth in answers.truths]) / answers.durations
    return _binned(np.clip(centres, 0, np.nextafter(1, 0)), POSITIONS, answers, constants, _percent)


def _binned(
    values: Array,
    edges: Sequence[float],
    answers: Answers,
    constants: dict[str, Any],
    label: Callable[[float, float], str],
) -> list[dict[str, Any]]:
    """The metrics of the queries whose value of `values` [Q] lies in each bin; empty bins are left out."""
    rows = []
    predicted = answers.spans()
    for low, high in pairwise(edges):
        at = np.flatnonzero((low <= values) & (values < high))
        if not len(at):
            continue
        truths = [answers.truths[i] for i in at]
        model = moment_metrics([predicted[i] for i in at], truths, (1,), (0.5, 0.7))
        constant = constant_metrics(constants, truths, [answers.durations[i] for i in at])
        rows.append(
            {
                "bin": label(low, high),
                "queries": len(at),
                "model": {k: model[k] for k in BIN_METRICS},
                "constant": {k: constant[k] for k in BIN_METRICS if k in constant},
            }
        )
    return rows


def boundaries(answers: Answers) -> dict[str, Any]:
    """Quantiles in seconds of the errors of `all` first answers and of those that `overlap` the truth.

    An answer elsewhere in the video is in the wrong place, so its boundaries say little.
    """
    errors, overlap = boundary_errors(answers)
    return {
        name: {"queries": len(part), "start": _quantiles(part[:, 0]), "end": _quantiles(part[:, 1])}
        for name, part in (("all", errors), ("overlap", errors[overlap]))
    }


def boundary_errors(answers: Answers) -> tuple[Array, NDArray[np.bool_]]:
    """The errors [A, 2] of the A first answers' starts and ends, and [A] whether they overlap the truth.

    Errors are seconds; negative is too early. Of several true spans the one of highest IoU counts, and among
    equal ones the nearest.
    """
    errors, overlap = [], []
    for ranked, truth in zip(answers.spans(), answers.truths, strict=True):
        if len(ranked):
            ious = iou(ranked[:1], truth)[0]
            distances = np.abs(np.asarray(truth).mean(1) - ranked[0].mean())
            errors.append(ranked[0] - truth[int(np.lexsort((distances, -ious))[0])])
            overlap.append(bool(ious.max() > 0))
    return np.asarray(errors, float).reshape(-1, 2), np.asarray(overlap, bool)


def _quantiles(errors: Array) -> dict[str, float]:
    if not len(errors):
        return {}
    quantiles = {f"q{100 * q:.0f}": float(np.quantile(errors, q)) for q in QUANTILES}
    return quantiles | {"mean_absolute": float(np.abs(errors).mean())}


def several_moments(answers: Answers) -> dict[str, Any] | None:
    """Mean average precision over IoU .5:.05:.95 if any query has several true spans, else None.

    It counts all answers that were kept of a query, which may be fewer than a benchmark's 10.
    """
    several = sum(len(truth) > 1 for truth in answers.truths)
    if not several:
        return None
    kept = max(len(ranked) for ranked in answers.predicted)
    result: dict[str, Any] = {"queries": several, "answers": kept}
    for name in ("predicted", "shuffled"):
        precision = average_precision(answers.spans(name), answers.truths, windows=max(kept, 1))
        result["model" if name == "predicted" else name] = 100 * float(precision.mean())
    return result


def longest(truth: Sequence[Span]) -> Span:
    """The longest of a query's true spans."""
    return max(truth, key=lambda span: span[1] - span[0])


def _top_iou(predictions: Sequence[Array], truths: Sequence[Sequence[Span]]) -> Array:
    return np.array(
        [iou(p[:1], t).max() if len(p) else 0.0 for p, t in zip(predictions, truths, strict=True)]
    )


def _seconds(low: float, high: float) -> str:
    return f"{low:g} s and longer" if np.isinf(high) else f"{low:g}–{high:g} s"


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.0f}–{100 * high:.0f} %"
