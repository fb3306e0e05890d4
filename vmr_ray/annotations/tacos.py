"""TACoS (Regneri et al., TACL 2013) as JSON: frame numbers, converted to seconds by `fps`."""

from __future__ import annotations

from collections.abc import Iterator

from vmr_ray.annotations.captions import caption_rows
from vmr_ray.annotations.rows import Row, RowProblem


def read(text: str) -> Iterator[Row | RowProblem]:
    return caption_rows(
        text, duration=lambda entry: entry["num_frames"] / entry["fps"], fps=lambda entry: entry["fps"]
    )
