"""One row of an annotation file, before and after its check: the same rules for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vmr_ray.schema import Annotation, Span

# Ends such as 55.15000000000001 in a video of 55.15 s are rounding, not a defect worth a report.
ROUNDING_S = 1e-6


@dataclass(frozen=True)
class Row:
    """What one row of a file says, unchecked; `spans` should be pairs of seconds, `qid` names the query."""

    line: int | None
    where: str
    video: Any
    query: Any
    spans: Any
    duration: Any = None
    qid: Any = None


@dataclass(frozen=True)
class Problem:
    """One row that was mended or left out; `reason` says how to mend it, `kind` is what to count by."""

    line: int | None
    where: str
    action: Literal["clipped", "dropped"]
    reason: str
    kind: str


class DefectError(Exception):
    """Why a row cannot be used."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def check_row(row: Row, durations: Mapping[str, float]) -> tuple[Annotation | None, Problem | None]:
    """The row as an Annotation, and what was wrong with it.

    An end past the duration is clipped. A row is dropped whole if any of its spans is bad: a query
    that misses one of its moments would count a right answer as wrong.
    """
    try:
        video, query = _text("video", row.video), _text("query", row.query)
        given = row.duration if row.duration not in (None, "") else durations.get(video)
        duration = None if given is None else _duration(given)
        spans = _spans(row.spans, duration)
    except DefectError as defect:
        return None, Problem(row.line, row.where, "dropped", defect.reason, defect.kind)
    if duration is None:
        return Annotation(video, query, spans), None

    clipped = Annotation(video, query, tuple((s, min(e, duration)) for s, e in spans), duration)
    end = max(e for _, e in spans)
    if end <= duration + ROUNDING_S:
        return clipped, None
    reason = f"end {end} is past the video's duration {duration}: it was set to the duration"
    kind = f"end past the duration by {'over' if end > duration + 1 else 'up to'} 1 s"
    return clipped, Problem(row.line, row.where, "clipped", reason, kind)


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
