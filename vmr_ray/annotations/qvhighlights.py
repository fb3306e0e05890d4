"""QVHighlights (Lei et al., NeurIPS 2021): JSONL, several windows a query, saliency of 2 s clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_ray.annotations.rows import Problem, Row
from vmr_ray.annotations.text import read_text
from vmr_ray.annotations.vmr import jsonl_objects
from vmr_ray.errors import VmrError

CLIP_S = 2


@dataclass(frozen=True)
class Highlight:
    """One query's saliency: `[clips, annotators]`, 0 (very bad) to 4 (very good), 0 where not relevant."""

    qid: int
    video_id: str
    query: str
    saliency: NDArray[np.float64]


def read(text: str) -> Iterator[Row | Problem]:
    for number, item in jsonl_objects(text):
        if isinstance(item, Problem):
            yield item
        else:
            where, windows, known = f"line {number}", item.get("relevant_windows"), item.get
            yield Row(number, where, known("vid"), known("query"), windows, known("duration"), known("qid"))


def read_highlights(path: str | Path) -> list[Highlight]:
    """The saliency of every query, in the file's order.

    Raises:
        VmrError: the file cannot be read, or a line has no usable saliency.
    """
    return [_highlight(path, number, item) for number, item in jsonl_objects(read_text(path))]


def _highlight(path: str | Path, number: int, item: Any) -> Highlight:
    if isinstance(item, Problem):
        raise VmrError(f"{path}: {item.where}: {item.reason}")
    try:
        scores = np.asarray(item["saliency_scores"], dtype=float)
        saliency = np.zeros((int(item["duration"] / CLIP_S), scores.shape[1]))
        saliency[item["relevant_clip_ids"]] = scores
        return Highlight(item["qid"], item["vid"], item["query"], saliency)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VmrError(
            f"{path}: line {number}: no usable saliency ({type(error).__name__}: {error}); "
            "it needs qid, vid, duration, relevant_clip_ids and saliency_scores"
        ) from None
