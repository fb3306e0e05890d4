"""Metadata: fields of a video that its owner sets and that searches filter by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmr_ray.errors import VmrError
from vmr_ray.records import read_records

Value = str | int | float | bool
Metadata = Mapping[str, Value]


def read_metadata(file: str | Path) -> Mapping[str, Metadata]:
    """Metadata by video_id from JSONL or CSV: rows of a `video_id` and any other fields.

    CSV values are always strings.

    Raises:
        VmrError: the file cannot be read, or a row has no `video_id` or repeats one.
    """
    metadata: dict[str, dict[str, Any]] = {}
    for line, row in read_records(str(file)):
        video_id = row.pop("video_id", None)
        if not isinstance(video_id, str) or not video_id:
            raise VmrError(f"{file}, line {line}: a row of metadata needs the text 'video_id'")
        if video_id in metadata:
            raise VmrError(f"{file}, line {line}: {video_id!r} was named before; give each video one row")
        metadata[video_id] = {key: value for key, value in row.items() if key and value is not None}
    return metadata


def as_json(metadata: Metadata, video_id: str) -> str:
    """Metadata as the index stores it: equal texts mean equal metadata.

    Raises:
        VmrError: a value is not a string, number or boolean.
    """
    for key, value in metadata.items():
        if not isinstance(value, str | int | float | bool):
            raise VmrError(
                f"metadata of {video_id!r}: {key} is a {type(value).__name__}; "
                "give a text, a number, true or false"
            )
    return json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)


def tag(key: str, value: Value) -> str:
    """One field as a string; two strings are equal if and only if key and value are."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"
