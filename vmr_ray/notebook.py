"""A search's result for people: a table with timelines in a notebook, columns of text at a prompt."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmr_ray.search import SearchResult


def timecode(seconds: float) -> str:
    """83.46 -> 1:23.5"""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def text(result: SearchResult) -> str:
    """The query and one line a moment: rank, video, start, end, score."""
    wide = max((len(m.video_id) for m in result.moments), default=0)
    lines = [
        f"{rank:2}  {m.video_id:{wide}}  {timecode(m.start):>7} - {timecode(m.end):>7}  {m.score:7.2f}"
        for rank, m in enumerate(result.moments, start=1)
    ]
    return "\n".join([f"{result.query!r}: {len(lines)} moments", *lines])


def html(result: SearchResult) -> str:
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
