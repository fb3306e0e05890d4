"""Charades-STA (Gao et al., ICCV 2017): `VIDEO start end##query` a line, in seconds, without durations."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmr_ray.annotations.rows import Problem, Row

_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+?)\s*##(.*)")


def read(text: str) -> Iterator[Row | Problem]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        if found := _LINE.fullmatch(line.strip()):
            video, start, end, query = found.groups()
            yield Row(number, where, video, query, [[start, end]])
        else:
            reason = "not of the form 'VIDEO start end##query': rewrite it so"
            yield Problem(number, where, "dropped", reason, "malformed line")
