"""Whether what a query describes is there at all: how well a score or a probability tells that.

Pure functions of arrays: `truth` [n] is True where the query is shown, `values` [n] are higher the surer the
model is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmr_ray.model.presence import Presence

Array = NDArray[np.float64]

BINS = 10  # of a reliability diagram
PRESENCE_LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "rejection_at_95": "rejected, 95 % of the shown kept",
    "rejection_at_99": "rejected, 99 % of the shown kept",
    "rejected": "rejected by min_probability",
    "ece": "calibration error",
}


def auroc(truth: ArrayLike, values: ArrayLike) -> float:
    """Area under the ROC curve, in [0, 1]: how often a shown query has the higher value; a tie counts half.

    Raises:
        ValueError: no query is shown, or every one is.
    """
    shown, value = _checked(truth, values)
    _, place, count = np.unique(value, return_inverse=True, return_counts=True)
    rank = (count.cumsum() - (count - 1) / 2)[place]  # equal values share the middle of their ranks
    n = int(shown.sum())
    return float((rank[shown].sum() - n * (n + 1) / 2) / (n * (len(shown) - n)))


def average_precision(truth: ArrayLike, values: ArrayLike) -> float:
    """Area under the precision-recall curve (AUPRC), in [0, 1]: a sum over the values, without interpolation.

    Arguments and errors as `auroc`.
    """
    shown, value = _checked(truth, values)
    order = np.argsort(-value, kind="stable")
    hits = shown[order].cumsum()
    last = np.flatnonzero(np.append(np.diff(value[order]) != 0, True))  # of each run of equal values
    recall = hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0) * hits[last] / (last + 1)).sum())


def threshold_of_recall(truth: ArrayLike, values: ArrayLike, recall: float) -> float:
    """The highest value that a share `recall` of the shown queries reaches."""
    shown, value = _checked(truth, values)
    descending = np.sort(value[shown])[::-1]
    return float(descending[int(np.ceil(recall * len(descending))) - 1])


def rejection(truth: ArrayLike, values: ArrayLike, recall: float) -> float:
    """The share of the absent queries that lie below `threshold_of_recall`, in [0, 1]."""
    shown, value = _checked(truth, values)
    return float((value[~shown] < threshold_of_recall(shown, value, recall)).mean())


def reliability(truth: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> list[dict[str, float]]:
    """A reliability diagram: of every bin of equal width that is not empty the number of its `queries`, their
    mean `probability`, and the share of them that is `shown`."""
    shown, value = _checked(truth, probabilities)
    number = np.minimum((value * bins).astype(int), bins - 1)
    return [
        {
            "queries": int((number == i).sum()),
            "probability": float(value[number == i].mean()),
            "shown": float(shown[number == i].mean()),
        }
        for i in np.unique(number)
    ]


def calibration_error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error (ECE, Guo et al. 2017, arXiv:1706.04599) of a `reliability` diagram."""
    total = sum(row["queries"] for row in rows)
    return sum(row["queries"] * abs(row["probability"] - row["shown"]) for row in rows) / total


def presence_metrics(
    shown: ArrayLike, absent: ArrayLike, presence: Presence | None
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Percentages by name, see `PresenceMetrics`, and the reliability diagram, of the scores of both kinds.

    Without a calibration they are of the scores themselves, and there is no diagram.

    Raises:
        ValueError: there are none of one kind.
    """
    truth, values = together(shown, absent)
    if presence is not None:
        values = presence.probabilities(values)
    shares = {
        "auroc": auroc(truth, values),
        "auprc": average_precision(truth, values),
        "rejection_at_95": rejection(truth, values, 0.95),
        "rejection_at_99": rejection(truth, values, 0.99),
    }
    diagram: list[dict[str, float]] = []
    if presence is not None:
        diagram = reliability(truth, values)
        shares["ece"] = calibration_error(diagram)
        shares["rejected"] = float((values[~truth] < presence.min_probability).mean())
    return {name: 100 * share for name, share in shares.items()}, diagram


def together(shown: ArrayLike, absent: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
    """Scores of both kinds -> `truth` [n] and `values` [n]"""
    first, second = np.asarray(shown, float), np.asarray(absent, float)
    return np.arange(len(first) + len(second)) < len(first), np.concatenate([first, second])


def _checked(truth: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
    shown, value = np.asarray(truth, bool), np.asarray(values, float)
    if shown.shape != value.shape or shown.all() or not shown.any():
        raise ValueError("need one value for every query, of which some are shown and some are not")
    return shown, value
