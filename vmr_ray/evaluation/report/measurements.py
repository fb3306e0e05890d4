"""Answers -> the numbers of the report: pure functions of arrays. All shares are percent."""

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

LEVELS = np.arange(51) / 50  # of the recall curve
LENGTHS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, np.inf)  # seconds
POSITIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the moment's centre, as a share of the video
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IN_BINS = ("r1_at_0.5", "r1_at_0.7", "miou")


@dataclass(frozen=True)
class Answers:
    """What was asked of Q queries and answered; spans in seconds, ranked ones best first."""

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
        """[Q] IoU of the first answer with the nearest true span; 0 where there is no answer."""
        return _top_iou(self.spans(column), self.truths)


def measures(answers: Answers, constants: dict[str, Any]) -> dict[str, Any]:
    """Everything that is measured beyond the table, JSON-ready; `constants` as `controls.fit_constants`."""
    return {
        "recall_curve": recall_curve(answers, constants),
        "by_length": by_length(answers, constants),
        "by_position": by_position(answers, constants),
        "boundaries": boundaries(answers),
        "several_moments": several_moments(answers),
    }


def recall_curve(answers: Answers, constants: dict[str, Any]) -> dict[str, list[float]]:
    """R@1 at every level of `iou`, for `model`, `constant` and `shuffled`.

    The constant's is, level by level, that of its best answer: a rival that knows what it is asked for.
    """

    def recall(best: Array) -> Array:
        return 100 * (best[:, None] >= LEVELS).mean(0)

    fitted = [ConstantSpan(*ranked[0]) for ranked in constants.values() if ranked]
    said = [[np.asarray([c.predict(d)]) for d in answers.durations] for c in fitted]
    curves = {
        "iou": LEVELS,
        "model": recall(answers.best_iou()),
        "shuffled": recall(answers.best_iou("shuffled")),
    }
    if said:
        curves["constant"] = np.max([recall(_top_iou(spans, answers.truths)) for spans in said], axis=0)
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
    name: Callable[[float, float], str],
) -> list[dict[str, Any]]:
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
                "bin": name(low, high),
                "queries": len(at),
                "model": {k: model[k] for k in IN_BINS},
                "constant": {k: constant[k] for k in IN_BINS if k in constant},
            }
        )
    return rows


def boundaries(answers: Answers) -> dict[str, Any]:
    """Quantiles of the boundary errors of `all` first answers, and of those that `overlap` the truth.

    An answer elsewhere in the video has a wrong place, not a wrong boundary.
    """
    errors, overlap = boundary_errors(answers)
    return {
        name: {"queries": len(part), "start": _quantiles(part[:, 0]), "end": _quantiles(part[:, 1])}
        for name, part in (("all", errors), ("overlap", errors[overlap]))
    }


def boundary_errors(answers: Answers) -> tuple[Array, NDArray[np.bool_]]:
    """[A, 2] how far the first answers' starts and ends are from the truth's, and [A] whether they overlap.

    In seconds; negative is too early. Of several true spans the one of highest IoU counts, then the nearest.
    """
    errors, overlap = [], []
    for ranked, truth in zip(answers.spans(), answers.truths, strict=True):
        if len(ranked):
            shared = iou(ranked[:1], truth)[0]
            apart = np.abs(np.asarray(truth).mean(1) - ranked[0].mean())
            errors.append(ranked[0] - truth[int(np.lexsort((apart, -shared))[0])])
            overlap.append(bool(shared.max() > 0))
    return np.asarray(errors, float).reshape(-1, 2), np.asarray(overlap, bool)


def _quantiles(errors: Array) -> dict[str, float]:
    if not len(errors):
        return {}
    found = {f"q{100 * q:.0f}": float(np.quantile(errors, q)) for q in QUANTILES}
    return found | {"mean_absolute": float(np.abs(errors).mean())}


def several_moments(answers: Answers) -> dict[str, Any] | None:
    """Mean average precision over IoU .5:.05:.95, if any query has several true spans; else None.

    Of as many answers as were kept of every query, which are fewer than benchmarks take.
    """
    several = sum(len(truth) > 1 for truth in answers.truths)
    if not several:
        return None
    kept = max(len(ranked) for ranked in answers.predicted)
    found: dict[str, Any] = {"queries": several, "answers": kept}
    for name in ("predicted", "shuffled"):
        precision = average_precision(answers.spans(name), answers.truths, windows=max(kept, 1))
        found["model" if name == "predicted" else name] = 100 * float(precision.mean())
    return found


def longest(truth: Sequence[Span]) -> Span:
    """The longest true span of a query."""
    return max(truth, key=lambda span: span[1] - span[0])


def _top_iou(predictions: Sequence[Array], truths: Sequence[Sequence[Span]]) -> Array:
    return np.array(
        [iou(p[:1], t).max() if len(p) else 0.0 for p, t in zip(predictions, truths, strict=True)]
    )


def _seconds(low: float, high: float) -> str:
    return f"{low:g} s and longer" if np.isinf(high) else f"{low:g}–{high:g} s"


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.0f}–{100 * high:.0f} %"
