"""Moments, durations and timelines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vmr_ray.cli.common import plain
from vmr_ray.search.result import headline, rating, rating_name, timecode

if TYPE_CHECKING:
    from vmr_ray.search.searcher import SearchResult


def print_result(console: Console, result: SearchResult) -> None:
    """The moments of a search, or that nothing was found and what is nearest."""
    if not result.moments:
        console.print(headline(result))
    if result.moments or result.nearest:
        console.print(moments_table(result, console.width, console.is_terminal))


def moments_table(result: SearchResult, width: int, styled: bool = True) -> Table:
    """The moments of a search for a terminal of `width` columns, each with its place in its video.

    Without `styled`, for output into a pipe: no frame, colour or timeline, and one line for each moment.
    """
    table = Table() if styled else Table(box=None, pad_edge=False)
    moments = result.moments or result.nearest
    for name in ("", "video", "start", "end", rating_name(moments)):
        table.add_column(
            name,
            justify="left" if name == "video" else "right",
            overflow="fold",
            no_wrap=name != "video" or not styled,
        )
    bar = min(40, width - 60) if styled else 0  # characters of a timeline
    if bar >= 10:
        table.add_column("place in the video", no_wrap=True)
    for rank, moment in enumerate(moments, start=1):
        start, end = timecode(moment.start), timecode(moment.end)
        row = [str(rank), plain(moment.video_id), start, end, rating(moment)]
        if bar >= 10:
            length = result.durations.get(moment.video_id, moment.end)
            line = timeline(moment.start, moment.end, length, bar)
            first, last = line.index("━"), line.rindex("━") + 1
            row.append(
                f"[dim]{line[:first]}[/][bold green]{line[first:last]}[/][dim]{line[last:]}[/] "
                f"{timecode(length)}"
            )
        table.add_row(*row, style=None if result.found else "dim")
    return table


def duration(seconds: float) -> str:
    """A duration for people: 8040 -> 2 h 14 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def timeline(start: float, end: float, duration: float, width: int) -> str:
    """Where `[start, end)` lies in a video of `duration` seconds, in `width` characters: ──━━━────."""
    duration = max(duration, end, 1e-9)
    first = min(int(start / duration * width), width - 1)
    last = max(first + 1, min(round(end / duration * width), width))
    return "─" * first + "━" * (last - first) + "─" * (width - last)
