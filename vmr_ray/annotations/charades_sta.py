"""Charades-STA (Gao et al., ICCV 2017): `VIDEO start end##query` lines, seconds, without durations."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmr_ray.annotations.rows import Row, RowProblem

_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+?)\s*##(.*)")


def read(text: str) -> Iterator[Row | RowProblem]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        if match := _LINE.fullmatch(line.strip()):
            video, start, end, query = match.groups()
            yield Row(number, where, video, query, [[start, end]])
        else:
            reason = "not of the form 'VIDEO start end##query': rewrite it"
            yield RowProblem(number, where, "dropped", reason, "malformed line")
