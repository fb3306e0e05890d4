"""Rows of the JSONL and CSV files that users write: manifests and metadata."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from vmr_ray.errors import VmrError, one_line
from vmr_ray.storage import read_bytes

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the content of every line that is not empty. CSV values are always strings.

    Raises:
        VmrError: the file cannot be read, or a line is not a JSON object, not a row of CSV, or not text.
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise VmrError(f"cannot read {path}: {one_line(error)}") from None
    if path.lower().endswith(".csv"):
        yield from _csv_rows(path, lines)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            raise VmrError(
                f"{path}, line {number}: nested too deeply: give an object of plain fields"
            ) from None
        except ValueError as error:
            raise VmrError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise VmrError(f"{path}, line {number}: expected an object with 'video_id' and its fields")
        if _ESCAPED_SURROGATE.search(line) and not _is_text(row):
            raise VmrError(f"{path}, line {number}: half of a surrogate pair is no text: write the character")
        yield number, row


def _csv_rows(path: str, lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(lines)
    try:
        yield from enumerate(rows, start=2)
    except csv.Error as error:  # such as a field of more than 131,072 characters
        raise VmrError(f"{path}, line {rows.line_num + 1}: not CSV ({error})") from None


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True
