"""One row of an annotation file, before and after its check: the same rules for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vmr_ray.schema import CLIP_S, Annotation, Span

# Ends such as 55.15000000000001 in a video of 55.15 s are rounding, not a defect.
ROUNDING_S = 1e-6


@dataclass(frozen=True)
class Row:
    """The content of one row, unchecked. `qid` is the query's name in its benchmark.

    `spans` should be pairs of seconds, and `saliency` the indices of clips and the scores of each.
    """

    line: int | None
    where: str
    video: Any
    query: Any
    spans: Any
    duration: Any = None
    qid: Any = None
    saliency: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class RowProblem:
    """A row that was clipped or dropped; `reason` ends with the fix, `kind` groups problems for counting."""

    line: int | None
    where: str
    action: Literal["clipped", "dropped"]
    reason: str
    kind: str


class DefectError(Exception):
    """The reason why a row cannot be used."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def check_row(row: Row, durations: Mapping[str, float]) -> tuple[Annotation | None, RowProblem | None]:
    """The row as an Annotation (None if it is dropped), and the problem with it (None if there is none).

    An end past the duration is clipped. A row with a bad span is dropped as a whole, because a query that
    lacks one of its moments would count a right answer as wrong.
    """
    try:
        video, query = _text("video", row.video), _text("query", row.query)
        seconds = row.duration if row.duration not in (None, "") else durations.get(video)
        duration = None if seconds is None else _duration(seconds)
        spans = _spans(row.spans, duration)
        saliency = None if row.saliency is None else _saliency(*row.saliency, duration)
    except DefectError as defect:
        return None, RowProblem(row.line, row.where, "dropped", defect.reason, defect.kind)
    if duration is None:
        return Annotation(video, query, spans), None

    clipped = Annotation(video, query, tuple((s, min(e, duration)) for s, e in spans), duration, saliency)
    end = max(e for _, e in spans)
    if end <= duration + ROUNDING_S:
        return clipped, None
    reason = f"end {end} is past the video's duration {duration}: it was set to the duration"
    kind = f"end past the duration by {'over' if end > duration + 1 else 'up to'} 1 s"
    return clipped, RowProblem(row.line, row.where, "clipped", reason, kind)


def _text(name: str, value: Any) -> str:
    if value is None or value == "":
        raise DefectError(f"empty {name}", f"{name} is empty: fill it in, or delete the row")
    if not isinstance(value, str):
        raise DefectError(f"{name} not text", f"{name} {value!r} is not text: put it in quotes")
    if not value.strip():
        raise DefectError(f"empty {name}", f"{name} is empty: fill it in, or delete the row")
    return value.strip()


def _number(name: str, value: Any) -> float:
    if value is None or value == "":
        raise DefectError(f"missing {name}", f"{name} is missing: give it in seconds")
    try:
        if isinstance(value, bool):
            raise TypeError
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DefectError(
            "not a number", f"{name} {value!r} is not a number: give seconds, for example 12.5"
        ) from None
    if not math.isfinite(seconds):
        raise DefectError("not finite", f"{name} is {seconds}: give a finite number of seconds")
    return seconds


def _duration(value: Any) -> float:
    duration = _number("duration", value)
    if duration <= 0:
        raise DefectError(
            "bad duration", f"duration {duration} is not above 0: give the video's length in seconds"
        )
    return duration


def _spans(pairs: Any, duration: float | None) -> tuple[Span, ...]:
    if not isinstance(pairs, list) or not pairs:
        raise DefectError("no moment", "it has no moment: give its spans as [[start, end], ...] in seconds")
    return tuple(_span(pair, duration) for pair in pairs)


def _span(pair: Any, duration: float | None) -> Span:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise DefectError("span not a pair", f"span {pair!r} is not a pair: write [start, end] in seconds")
    start, end = _number("start", pair[0]), _number("end", pair[1])
    if start < 0:
        raise DefectError(
            "negative start", f"start {start} is negative: count seconds from the video's beginning"
        )
    if start > end:
        raise DefectError("start not before end", f"start {start} is not before end {end}: swap them")
    if start == end:
        raise DefectError("start not before end", f"start and end are both {start}: give the moment a length")
    if duration is not None and start >= duration:
        raise DefectError(
            "start past the duration",
            f"start {start} is not within the video's duration {duration}: correct one of them",
        )
    return start, end


def _saliency(clip_ids: Any, scores: Any, duration: float | None) -> NDArray[np.float32]:
    """[clips of CLIP_S seconds, annotators]: `scores` of the clips `clip_ids`, 0 for all others."""
    try:
        if duration is None:
            raise ValueError("the duration is missing")
        ids, rated = np.asarray(clip_ids), np.asarray(scores, np.float32)
        if ids.dtype.kind not in "iu" or ids.min() < 0 or rated.shape[:1] != ids.shape or not rated[0].size:
            raise ValueError("not a list of scores for each clip")
        saliency = np.zeros((int(duration / CLIP_S), rated.shape[1]), np.float32)
        saliency[ids] = rated
        return saliency
    except (TypeError, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise DefectError(
            "unusable saliency",
            f"no usable saliency ({type(error).__name__}: {error}): give the duration, relevant_clip_ids and "
            "saliency_scores, or delete the row",
        ) from None
