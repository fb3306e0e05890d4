"""Conditions on the rows of an index, as SQL for LanceDB."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from vmr_ray.search.metadata import tag
from vmr_ray.search.result import Filter


def _text(value: str) -> str:
    """A string as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def where_in(column: str, values: Iterable[str]) -> str:
    """The condition that a column has one of these values."""
    return f"{column} IN ({', '.join(map(_text, values))})"


def where(video_ids: Collection[str] | None, filter: Filter | None) -> str | None:
    """The condition of a search on its segments; None if it has none."""
    conditions = [where_in("video_id", video_ids)] if video_ids is not None else []
    conditions += [_where_tagged(key, wanted) for key, wanted in (filter or {}).items()]
    return " AND ".join(conditions) or None


def _where_tagged(key: str, wanted: Any) -> str:
    """The condition that a video's field `key` has the value `wanted`, or one of these values."""
    values = [wanted] if isinstance(wanted, str | int | float | bool) else list(wanted)
    return f"array_has_any(tags, [{', '.join(_text(tag(key, value)) for value in values)}])"
