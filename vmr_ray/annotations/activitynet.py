"""ActivityNet Captions (Krishna et al., ICCV 2017): seconds, several sentences a video."""

from __future__ import annotations

from collections.abc import Iterator

from vmr_ray.annotations.captions import caption_rows
from vmr_ray.annotations.rows import Row, RowProblem


def read(text: str) -> Iterator[Row | RowProblem]:
    return caption_rows(text, duration=lambda entry: entry["duration"], fps=lambda entry: 1.0)
