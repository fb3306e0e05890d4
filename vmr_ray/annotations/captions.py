"""JSON of dense-captioning datasets: `{video: {"timestamps": [[s, e], ...], "sentences": [...], ...}}`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from vmr_ray.annotations.rows import Row, RowProblem
from vmr_ray.errors import VmrError


def caption_rows(
    text: str, duration: Callable[[dict[str, Any]], float], fps: Callable[[dict[str, Any]], float]
) -> Iterator[Row | RowProblem]:
    """One row a sentence.

    Args:
        duration: computes a video's duration in seconds from its entry.
        fps: computes the number of its timestamps in a second from its entry.

    Raises:
        VmrError: the text is not one JSON object.
    """
    try:
        videos = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VmrError(f"not JSON ({error}): fetch the file again") from None
    if not isinstance(videos, dict):
        raise VmrError("not an object of videos: name another format")
    for video, entry in videos.items():
        try:
            pairs = list(zip(entry["timestamps"], entry["sentences"], strict=True))
            length, rate = duration(entry), fps(entry)
            spans = [[[start / rate, end / rate]] for (start, end), _ in pairs]
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            reason = f"its entry cannot be used ({type(error).__name__}: {error}): fix or delete it"
            yield RowProblem(None, video, "dropped", reason, "malformed entry")
            continue
        for index, ((_, sentence), span) in enumerate(zip(pairs, spans, strict=True), start=1):
            yield Row(None, f"{video}, sentence {index}", video, sentence, span, length)
