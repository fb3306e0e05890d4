"""A search and its result: what is asked, what is found, and how people see it.

A result shows itself as a table with timelines in a notebook, and as columns of text at a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from vmr_ray.schema import Moment

Filter = Mapping[str, str | int | float | bool | Sequence[str | int | float | bool]]


@dataclass(frozen=True)
class SearchRequest:
    """What to search for, and where.

    Attributes:
        query: what happens in the moment, as a sentence.
        top_k: so many moments at most (with `group_by="video"`: videos).
        video_ids: search these videos only.
        filter: search the videos only whose metadata has this value (or one of these values) in each field.
        min_score: leave out what scores lower.
        group_by: "moment", or "video" for the best moment of each video only.
        offset: leave out so many of the best: the next page begins there.
        saliency: say how each frame of the found videos fits, too.
    """

    query: str
    top_k: int = 10
    video_ids: Sequence[str] | None = None
    filter: Filter | None = None
    min_score: float | None = None
    group_by: Literal["moment", "video"] = "moment"
    offset: int = 0
    saliency: bool = False


@dataclass(frozen=True)
class Saliency:
    """How surely the frames of a video that search looked at belong to the moment.

    `times` [n] the middles of the frames, in seconds; `values` [n] in [0, 1].
    """

    times: list[float]
    values: list[float]


@dataclass(frozen=True)
class SearchResult:
    """The moments of one query, best first, and where the time went (milliseconds by stage).

    `candidates` are the videos that stage 1 passed on to stage 2, nearest first; `more` whether there are
    results behind these; `saliency` has the videos of the moments, if it was asked for; `durations` (seconds)
    the videos of the moments. `print` and notebooks show it as a table.
    """

    query: str
    moments: list[Moment]
    took_ms: dict[str, float] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)
    more: bool = False
    model_version: str = ""
    saliency: dict[str, Saliency] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def timecode(seconds: float) -> str:
    """83.46 -> 1:23.5"""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def as_text(result: SearchResult) -> str:
    """The query and one line a moment: rank, video, start, end, score."""
    wide = max((len(m.video_id) for m in result.moments), default=0)
    lines = [
        f"{rank:2}  {m.video_id:{wide}}  {timecode(m.start):>7} - {timecode(m.end):>7}  {m.score:7.2f}"
        for rank, m in enumerate(result.moments, start=1)
    ]
    return "\n".join([f"{result.query!r}: {len(lines)} moments", *lines])


def as_html(result: SearchResult) -> str:
    """A table whose last column shows each moment's place in its video; every text is escaped."""
    rows = []
    for rank, m in enumerate(result.moments, start=1):
        length = max(result.durations.get(m.video_id, m.end), m.end, 1e-9)
        left, wide = 200 * m.start / length, max(2.0, 200 * (m.end - m.start) / length)
        bar = (
            '<svg width="200" height="10" role="img"><rect y="4" width="200" height="2" fill="#999"/>'
            f'<rect x="{min(left, 198):.1f}" width="{wide:.1f}" height="10" rx="2" fill="#2a7"/></svg>'
        )
        cells = (rank, m.video_id, timecode(m.start), timecode(m.end), f"{m.score:.2f}")
        rows.append(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + f"<td>{bar}</td></tr>"
        )
    head = "".join(
        f"<th>{name}</th>" for name in ("", "video", "start", "end", "score", "place in the video")
    )
    return (
        f"<table><caption>{escape(result.query)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
