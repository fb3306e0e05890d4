"""Answers to sentences whose true moment is known, as a table that fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from vmr_ray.evaluation.metrics import iou

TOP_K = 10
HIT = 0.5  # the IoU from which an answer counts as right


class Place(NamedTuple):
    """The span `[start, end)` seconds of a video."""

    video: str
    start: float
    end: float

    def __str__(self) -> str:
        return f"{Path(self.video).stem} {self.start:.1f}-{self.end:.1f} s"


@dataclass(frozen=True)
class Answer:
    """The best moment found for a sentence, and the true one.

    Attributes:
        best: None if nothing was found.
        rank: of the first answer that overlaps the true moment by HIT; None if none of TOP_K does.
    """

    sentence: str
    truth: Place
    best: Place | None
    iou: float
    rank: int | None


def compare(sentence: str, truth: Place, found: Sequence[Place]) -> Answer:
    """`found`, best first, next to the truth."""
    ious = [_iou(place, truth) for place in found]
    rank = next((rank for rank, value in enumerate(ious, 1) if value >= HIT), None)
    return Answer(sentence, truth, found[0] if found else None, ious[0] if found else 0.0, rank)


def answers_table(title: str, answers: Sequence[Answer]) -> Table:
    """One row for each sentence."""
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("sentence")
    for name in ("true moment", "best answer", "IoU", "rank"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("IoU", "rank") else "left")
    for answer in answers:
        values = (answer.truth, answer.best or "nothing found", f"{answer.iou:.2f}", answer.rank or "-")
        table.add_row(answer.sentence, *map(str, values))
    table.caption = f"rank: of the first of {TOP_K} answers that overlaps the truth by half (IoU {HIT})"
    return table


def _iou(place: Place, truth: Place) -> float:
    """The IoU of two places; 0 if they are in different videos."""
    if place.video != truth.video:
        return 0.0
    return float(iou([(place.start, place.end)], [(truth.start, truth.end)])[0, 0])
