"""QVHighlights (Lei et al., NeurIPS 2021): JSONL, several windows a query, saliency of 2 s clips."""

from __future__ import annotations

from collections.abc import Iterator

from vmr_ray.annotations.rows import Row, RowProblem
from vmr_ray.annotations.vmr import jsonl_objects


def read(text: str) -> Iterator[Row | RowProblem]:
    for number, item in jsonl_objects(text):
        if isinstance(item, RowProblem):
            yield item
            continue
        rated = "saliency_scores" in item
        yield Row(
            line=number,
            where=f"line {number}",
            video=item.get("vid"),
            query=item.get("query"),
            spans=item.get("relevant_windows"),
            duration=item.get("duration"),
            qid=item.get("qid"),
            saliency=(item.get("relevant_clip_ids"), item["saliency_scores"]) if rated else None,
        )
