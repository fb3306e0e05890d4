"""Rows of the JSONL and CSV files that users write: manifests and metadata."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

from vmr_ray.errors import VmrError, one_line
from vmr_ray.storage import read_bytes


def read_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the content of every line that is not empty. CSV values are always strings.

    Raises:
        VmrError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise VmrError(f"cannot read {path}: {one_line(error)}") from None
    if path.lower().endswith(".csv"):
        yield from enumerate(csv.DictReader(lines), start=2)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise VmrError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise VmrError(f"{path}, line {number}: expected an object with 'video_id' and its fields")
        yield number, row
