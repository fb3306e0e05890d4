"""Tables, time codes and timelines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from vmr_ray.cli.common import plain
from vmr_ray.search.result import timecode

if TYPE_CHECKING:
    from vmr_ray.search.searcher import SearchResult


def metrics_table(result: Any) -> Table:
    """An Evaluation as a table: the model and its two controls."""
    from vmr_ray.evaluation.metrics import metric_label

    table = Table(title=f"{result.queries} queries on {result.videos} videos, percent")
    table.add_column("")
    columns = {
        "model": result.model,
        "best constant span": result.constant,
        "videos shuffled": result.shuffled,
    }
    for name in columns:
        table.add_column(name, justify="right")
    for key in result.model:
        row = (f"{found[key]:.1f}" if key in found else "-" for found in columns.values())
        table.add_row(metric_label(key), *row)
    return table


def corpus_table(corpus: Any) -> Table:
    """A Corpus as a table: the whole search, and its first stage."""
    from vmr_ray.evaluation.metrics import metric_label

    table = Table(title=f"{corpus.queries} queries on all {corpus.videos} videos of the index, percent")
    table.add_column("")
    table.add_column("model", justify="right")
    for key, value in corpus.metrics.items():
        table.add_row(metric_label(key), f"{value:.1f}")
    table.add_row("stage 1 finds the video", f"{corpus.candidate_recall:.1f}")
    return table


def moments_table(result: SearchResult, width: int, styled: bool = True) -> Table:
    """The moments of a search for a terminal of `width` columns, each with its place in its video.

    Without `styled` (piped) there is no frame, no colour and no timeline: one line a moment, in columns.
    """
    table = Table() if styled else Table(box=None, pad_edge=False)
    for name in ("", "video", "start", "end", "score"):
        table.add_column(
            name,
            justify="left" if name == "video" else "right",
            overflow="fold",
            no_wrap=name != "video" or not styled,
        )
    bar = max(0, min(40, width - 60)) if styled else 0
    if bar >= 10:
        table.add_column("place in the video", no_wrap=True)
    for rank, m in enumerate(result.moments, start=1):
        row = [str(rank), plain(m.video_id), timecode(m.start), timecode(m.end), f"{m.score:.2f}"]
        if bar >= 10:
            length = result.durations.get(m.video_id, m.end)
            line = timeline(m.start, m.end, length, bar)
            first, last = line.index("━"), line.rindex("━") + 1
            row.append(
                f"[dim]{line[:first]}[/][bold green]{line[first:last]}[/][dim]{line[last:]}[/] "
                f"{timecode(length)}"
            )
        table.add_row(*row)
    return table


def duration(seconds: float) -> str:
    """8040 -> 2 h 14 min"""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def timeline(start: float, end: float, duration: float, width: int) -> str:
    """Where `[start, end)` lies in a video of `duration` seconds, in `width` characters: ──━━━────"""
    duration = max(duration, end, 1e-9)
    first = min(int(start / duration * width), width - 1)
    last = max(first + 1, min(round(end / duration * width), width))
    return "─" * first + "━" * (last - first) + "─" * (width - last)
