"""The queries that the report draws one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from vmr_ray.evaluation.report.measurements import Answers
from vmr_ray.schema import Span

BEST, WORST = 8, 12


@dataclass(frozen=True)
class Case:
    """One query, its truth and its first answer; `membership` [T] in [0, 1] lies between `edges` [T+1]."""

    kind: str  # best or worst
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
        return replace(self, edges=list(edges), membership=list(membership))


def choose(answers: Answers, best: int = BEST, worst: int = WORST) -> list[Case]:
    """The answers of highest and of lowest IoU, always the same ones; no moment twice, no query in both.

    Among equally wrong answers those of the highest score come first: sure and wrong tells most.
    """
    found = answers.best_iou()

    def key(i: int) -> tuple[float, str, str]:
        ranked = answers.predicted[i]
        return (-ranked[0][2] if ranked else np.inf, answers.video_ids[i], answers.queries[i])

    order = sorted(range(len(found)), key=lambda i: (found[i], *key(i)))
    down = sorted(range(len(found)), key=lambda i: (-found[i], *key(i)))
    bad = _distinct(answers, order, min(worst, len(found) - min(best, len(found) // 2)))
    good = _distinct(answers, [i for i in down if i not in bad], min(best, len(found) // 2))
    return [
        *(_case(answers, i, "best", found[i]) for i in good),
        *(_case(answers, i, "worst", found[i]) for i in bad),
    ]


def _distinct(answers: Answers, order: Iterable[int], most: int) -> list[int]:
    """The first `most` of `order`, one a moment: many sentences may tell of the same one."""
    kept: dict[tuple[str, str], int] = {}
    for i in order:
        if len(kept) < most:
            kept.setdefault((answers.video_ids[i], repr(answers.truths[i])), i)
    return list(kept.values())


def _case(answers: Answers, i: int, kind: str, iou: float) -> Case:
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
