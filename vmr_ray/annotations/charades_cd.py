"""Charades-CD (Yuan et al., 2021): Charades-STA re-split against its bias; seconds, with durations."""

from __future__ import annotations

from collections.abc import Iterator

from vmr_ray.annotations.captions import caption_rows
from vmr_ray.annotations.rows import Row, RowProblem


def read(text: str) -> Iterator[Row | RowProblem]:
    return caption_rows(text, duration=lambda entry: entry["video_duration"], fps=lambda entry: 1.0)
