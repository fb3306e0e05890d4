"""How likely a moment is what its query describes, given its score: the calibration of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

Array = NDArray[np.float64]

KEPT = 0.95  # share of the validation's true moments that reach `min_probability`
_STEPS = 100
_FEWEST = 10  # scores of either kind that a calibration is fitted to


class Presence(BaseModel):
    """Platt scaling (Platt 1999): the probability is `sigmoid(slope * score + intercept)`.

    It is that of a window of which one does not know whether it shows the query: as likely as not. Of the
    true moments a share `KEPT` reaches `min_probability`.
    """

    model_config = ConfigDict(extra="forbid")

    slope: float
    intercept: float
    min_probability: float

    def probability(self, score: float) -> float:
        """In [0, 1]."""
        return float(self.probabilities(score))

    def probabilities(self, scores: ArrayLike) -> Array:
        """As `probability`, of many scores at once."""
        return _sigmoid(self._log_odds(scores))

    def of_any(self, scores: Sequence[float], windows: int) -> float:
        """The probability, in [0, 1], that any of `windows` windows shows the query.

        Before the search it is as likely as not that one of the windows shows the query, and each of them
        equally likely. By Bayes the odds are then the mean of the windows' odds, because `probability` is
        of even odds.

        Args:
            scores: the best score of each window that was looked into; the others count as very unlikely.
        """
        odds = np.exp(np.minimum(self._log_odds(scores), 50.0))
        mean = float(odds.sum()) / max(windows, len(scores), 1)
        return mean / (1 + mean)

    def _log_odds(self, scores: ArrayLike) -> Array:
        return self.slope * np.asarray(scores, float) + self.intercept


def fit_presence(shown: ArrayLike, absent: ArrayLike) -> Presence | None:
    """The calibration that fits the best scores of queries in videos that show them, and in others.

    Both kinds count the same, however many there are. None if there are too few scores, or if they do not
    tell the kinds apart.
    """
    kinds = np.asarray(shown, float), np.asarray(absent, float)
    m, n = map(len, kinds)
    if min(m, n) < _FEWEST:
        return None
    scores = np.concatenate(kinds)
    is_shown = np.arange(m + n) < m
    weight = np.where(is_shown, 0.5 / m, 0.5 / n)
    # Platt's targets: a little inside of 0 and 1, so that scores without any overlap have a finite slope.
    target = np.where(is_shown, (m + 1) / (m + 2), 1 / (n + 2))
    centre = weight @ scores
    spread = float(np.sqrt(weight @ (scores - centre) ** 2))
    if not spread > 0:
        return None
    factor, constant = _logistic((scores - centre) / spread, target, weight)
    slope = factor / spread
    if slope <= 0:
        return None
    presence = Presence(slope=slope, intercept=float(constant - slope * centre), min_probability=0.0)
    lowest = np.sort(kinds[0])[int((1 - KEPT) * m)]
    return presence.model_copy(update={"min_probability": presence.probability(float(lowest))})


def _logistic(values: Array, target: Array, weight: Array) -> tuple[float, float]:
    """Logistic regression of values [n] by Newton's method: the factor and the constant."""
    inputs = np.column_stack([values, np.ones(len(values))])  # [n, 2]
    factors = np.zeros(2)
    for _ in range(_STEPS):
        p = _sigmoid(inputs @ factors)
        gradient = inputs.T @ (weight * (p - target))  # [2]
        curvature = (inputs * (weight * p * (1 - p))[:, None]).T @ inputs + 1e-9 * np.eye(2)  # [2, 2]
        step = np.linalg.solve(curvature, gradient)
        # Shortened, because far from the minimum the whole step may lead away from it.
        factors = factors - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return float(factors[0]), float(factors[1])


def _sigmoid(x: Array) -> Array:
    result: Array = 0.5 * (1 + np.tanh(x / 2))
    return result
