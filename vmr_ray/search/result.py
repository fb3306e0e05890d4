"""A search request and its result.

A result displays itself as a table with timelines in a notebook, and as columns of text at a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.schema import Moment
from vmr_ray.search.metadata import Value

Filter = Mapping[str, Value | Sequence[Value]]


@dataclass(frozen=True)
class SearchRequest:
    """What to search for, and where.

    Attributes:
        query: what happens in the moment, as a sentence.
        top_k: the number of moments to return (with `group_by="video"`: of videos).
        video_ids: search these videos only.
        filter: search only videos whose metadata has this value (or one of these values) in each field.
        min_score: leave out moments with a lower score.
        min_probability: leave out moments with a lower probability, 0 to 1; default: the checkpoint's, at
            which few true moments are lost. 0 leaves none out.
        group_by: "moment", or "video" for the best moment of each video only.
        offset: skip this many of the best moments: the next page begins at `offset + top_k`.
        saliency: also return how well each frame of the found videos fits.
    """

    query: str
    top_k: int = 10
    video_ids: Sequence[str] | None = None
    filter: Filter | None = None
    min_score: float | None = None
    min_probability: float | None = None
    group_by: Literal["moment", "video"] = "moment"
    offset: int = 0
    saliency: bool = False

    def check(self, config: SearchConfig) -> None:
        """Raises VmrError if a searcher with this config does not take the request."""
        if not self.query.strip():
            raise VmrError("the query is empty: describe what happens in a sentence")
        if len(self.query) > config.max_query_chars:
            raise VmrError(
                f"the query has {len(self.query)} characters, "
                f"at most {config.max_query_chars} are taken: shorten it"
            )
        if not 1 <= self.top_k <= config.max_top_k:
            raise VmrError(f"top_k is {self.top_k}: it must be 1 to {config.max_top_k}")
        if self.offset < 0:
            raise VmrError(f"offset is {self.offset}: it must be at least 0")
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise VmrError(f"min_probability is {self.min_probability}: it must be 0 to 1")
        if self.video_ids is not None and not self.video_ids:
            raise VmrError("video_ids is empty: name a video, or leave it out to search all")


@dataclass(frozen=True)
class Saliency:
    """How surely the frames of a video belong to the moment, for the frames that stage 2 scored.

    `times` [n] are the middles of the frames in seconds, `values` [n] lie in [0, 1].
    """

    times: list[float]
    values: list[float]


@dataclass(frozen=True)
class SearchResult:
    """The moments of one query, best first. `print` and notebooks show it as a table.

    Attributes:
        took_ms: milliseconds by stage.
        candidates: ids of the videos that stage 1 passed on to stage 2, nearest first.
        more: whether a next page has moments.
        model_version: the checksum of the checkpoint that ranked.
        saliency: by video_id, for the videos of the moments, if it was requested.
        durations: seconds by video_id, for the videos of the moments and of the nearest ones.
        found: whether any moment is probable enough, on this page or another one.
        nearest: the best moments that are too improbable, if none is probable enough.
        probability: that any of the searched videos shows what the query describes, in [0, 1]; None without a
            calibrated checkpoint.
    """

    query: str
    moments: list[Moment]
    took_ms: dict[str, float] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)
    more: bool = False
    model_version: str = ""
    saliency: dict[str, Saliency] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    found: bool = True
    nearest: list[Moment] = field(default_factory=list)
    probability: float | None = None

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
    """The query and one line a moment: rank, video, start, end, rating."""
    moments = result.moments or result.nearest
    width = max((len(m.video_id) for m in moments), default=0)
    lines = [
        f"{rank:2}  {m.video_id:{width}}  {timecode(m.start):>7} - {timecode(m.end):>7}  {rating(m):>7}"
        for rank, m in enumerate(moments, start=1)
    ]
    return "\n".join([f"{result.query!r}: {headline(result)}", *lines])


def headline(result: SearchResult) -> str:
    """How many moments were found: what stands above them."""
    if result.found:
        return f"{len(result.moments)} moments"
    return "nothing found; nearest anyway:" if result.nearest else "nothing found"


def rating(moment: Moment) -> str:
    """The probability, 0.873 -> 87 %, or without one the score. Neither certainty is ever claimed."""
    if moment.probability is None:
        return f"{moment.score:.2f}"
    return f"{min(max(round(100 * moment.probability), 1), 99)} %"


def rating_name(moments: Sequence[Moment]) -> str:
    """The heading of a column of `rating`."""
    return "score" if all(moment.probability is None for moment in moments) else "probable"


def as_html(result: SearchResult) -> str:
    """A table whose last column shows where in its video each moment lies. All text is escaped."""
    moments, rows = result.moments or result.nearest, []
    style = "" if result.found else ' style="opacity: .55"'
    for rank, m in enumerate(moments, start=1):
        length = max(result.durations.get(m.video_id, m.end), m.end, 1e-9)
        left, width = 200 * m.start / length, max(2.0, 200 * (m.end - m.start) / length)
        bar = (
            '<svg width="200" height="10" role="img"><rect y="4" width="200" height="2" fill="#999"/>'
            f'<rect x="{min(left, 198):.1f}" width="{width:.1f}" height="10" rx="2" fill="#2a7"/></svg>'
        )
        cells = (rank, m.video_id, timecode(m.start), timecode(m.end), rating(m))
        rows.append(
            f"<tr{style}>"
            + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
            + f"<td>{bar}</td></tr>"
        )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("", "video", "start", "end", rating_name(moments), "place in the video")
    )
    return (
        f"<table><caption>{escape(result.query)}: {headline(result)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
