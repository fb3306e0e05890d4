"""The queries that the report shows one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vmr_ray.evaluation.report.measurements import Answers
from vmr_ray.schema import Span

BEST, WORST = 8, 12


@dataclass(frozen=True)
class Case:
    """One query, its true spans and its first answer, in seconds.

    `membership` [T] is in [0, 1]; frame i covers `edges[i]` to `edges[i+1]` of `edges` [T+1].
    """

    kind: Literal["best", "worst"]
    video_id: str
    duration: float
    query: str
    truth: list[Span]
    predicted: Span | None
    score: float | None
    iou: float
    edges: list[float]
    membership: list[float]

    def with_membership(self, edges: Iterable[float], membership: Iterable[float]) -> Case:
        """A copy with this curve."""
        return replace(self, edges=list(edges), membership=list(membership))


def choose_cases(answers: Answers, best: int = BEST, worst: int = WORST) -> list[Case]:
    """The answers of highest and of lowest IoU, always the same ones; no moment twice, no query in both.

    Among equally wrong answers those of the highest score come first, because confident errors are the most
    instructive.
    """
    ious = answers.best_iou()

    def tie_break(i: int) -> tuple[float, str, str]:
        ranked = answers.predicted[i]
        return (-ranked[0][2] if ranked else np.inf, answers.video_ids[i], answers.queries[i])

    ascending = sorted(range(len(ious)), key=lambda i: (ious[i], *tie_break(i)))
    descending = sorted(range(len(ious)), key=lambda i: (-ious[i], *tie_break(i)))
    best = min(best, len(ious) // 2)
    bad = _distinct(answers, ascending, min(worst, len(ious) - best))
    good = _distinct(answers, [i for i in descending if i not in bad], best)
    return [
        *(_case(answers, i, "best", ious[i]) for i in good),
        *(_case(answers, i, "worst", ious[i]) for i in bad),
    ]


def _distinct(answers: Answers, order: Iterable[int], limit: int) -> list[int]:
    """The first `limit` queries of `order`, one a moment; several sentences may describe the same one."""
    kept: dict[tuple[str, str], int] = {}
    for i in order:
        if len(kept) < limit:
            kept.setdefault((answers.video_ids[i], repr(answers.truths[i])), i)
    return list(kept.values())


def _case(answers: Answers, i: int, kind: Literal["best", "worst"], iou: float) -> Case:
    start, end, score = answers.predicted[i][0] if answers.predicted[i] else (None, None, None)
    return Case(
        kind,
        answers.video_ids[i],
        answers.durations[i],
        answers.queries[i],
        answers.truths[i],
        None if start is None or end is None else (start, end),
        score,
        float(iou),
        [],
        [],
    )
