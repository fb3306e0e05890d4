"""The step that answers queries, without a cluster: on the store and the checkpoint of the fixtures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vmr_ray.config import EvaluateConfig
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.inputs import EvaluationInputs, open_inputs
from vmr_ray.evaluation.retrieval import _AnswerQueries, _items

EARLIER = Path(__file__).parents[2] / "fixtures" / "earlier"
VIDEOS = [v["video_id"] for v in json.loads((EARLIER / "expected.json").read_text())["videos"]][:3]


def opened(tmp_path: Path, rows: list[dict[str, Any]]) -> EvaluationInputs:
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return open_inputs(EARLIER / "features", path, EARLIER / "checkpoint", EvaluateConfig())


def answer(
    inputs: EvaluationInputs, items: list[dict[str, Any]], asks_absent: bool = False
) -> list[dict[str, Any]]:
    step = _AnswerQueries(
        inputs.checkpoint, inputs.store.root, inputs.answers, inputs.config.nms, asks_absent
    )
    rows: list[dict[str, Any]] = step(pa.Table.from_pylist(items)).to_pylist()
    return rows


def qv_row(video: str, query: str, **more: Any) -> dict[str, Any]:
    return {"qid": 1, "vid": video, "query": query, "duration": 8, "relevant_windows": [[2, 4]], **more}


def test_every_query_is_answered_from_both_videos(tmp_path: Path) -> None:
    rows = [
        {"video": video, "query": f"query {i}", "start": 1.0, "end": 2.0 + i}
        for i, video in enumerate(VIDEOS)
    ]
    inputs = opened(tmp_path, [*rows, rows[0] | {"query": "another", "start": 0.0}])
    assert (inputs.answers, inputs.is_qvhighlights) == (5, False)
    items = _items(inputs)
    found = answer(inputs, items[::-1])
    assert [row["row"] for row in sorted(found, key=lambda row: row["row"])] == [0, 1, 2, 3]
    by_query = {row["query"]: row for row in found}
    assert [by_query[row["query"]]["video_id"] for row in rows] == VIDEOS
    assert by_query["another"]["truth"] == [[0.0, 2.0]] and by_query["another"]["video_id"] == VIDEOS[0]
    assert all(row["clip_scores"] == [] for row in found)
    assert {row["absent_score"] for row in found} == {None}
    assert all(isinstance(row["absent_score"], float) for row in answer(inputs, items, asks_absent=True))

    # Shuffled is what a query gets whose own video is the other one.
    for item in items:
        item["files"], item["other_files"] = item["other_files"], item["files"]
    swapped = {row["query"]: row for row in answer(inputs, items)}
    for query, row in by_query.items():
        assert swapped[query]["predicted"] == row["shuffled"] != row["predicted"]
        assert 1 <= len(row["predicted"]) <= 5


def test_clips_are_scored_where_they_are_rated(tmp_path: Path) -> None:
    rated = {"relevant_clip_ids": [1], "saliency_scores": [[4, 3, 2]]}
    inputs = opened(
        tmp_path, [qv_row(VIDEOS[0], "a", **rated), qv_row(VIDEOS[0], "b"), qv_row(VIDEOS[1], "c")]
    )
    assert (inputs.answers, inputs.is_qvhighlights) == (10, True)
    rows = {row["query"]: row for row in answer(inputs, _items(inputs))}
    assert len(rows["a"]["clip_scores"]) == len(rows["a"]["shuffled_clip_scores"]) == 4
    assert rows["a"]["clip_scores"] != rows["a"]["shuffled_clip_scores"]
    assert all(0 <= score <= 1 for score in rows["a"]["clip_scores"])
    assert rows["b"]["clip_scores"] == rows["c"]["clip_scores"] == []


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="1 of the annotated videos .* at least 2 are needed"):
        opened(tmp_path, [{"video": VIDEOS[0], "query": "a", "start": 1, "end": 2}])
    three = {"relevant_clip_ids": [1], "saliency_scores": [[4, 3, 2]]}
    with pytest.raises(VmrError, match="saliency scores of 2 and 3 annotators"):
        opened(
            tmp_path,
            [
                qv_row(VIDEOS[0], "a", **three),
                qv_row(VIDEOS[1], "b", **three | {"saliency_scores": [[4, 4]]}),
            ],
        )


def test_the_metrics_decide_how_many_answers_are_kept(tmp_path: Path) -> None:
    rows = [{"video": video, "query": "a", "start": 1, "end": 2} for video in VIDEOS]
    inputs = opened(tmp_path, rows)
    assert replace(inputs, config=EvaluateConfig(top_k=(1,))).answers == 1
    assert replace(inputs, config=EvaluateConfig(top_k=(1, 20))).answers == 20
