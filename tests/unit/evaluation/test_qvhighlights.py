from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vmr_ray.annotations import read_annotations
from vmr_ray.annotations.rows import Row
from vmr_ray.evaluation.metrics import ConstantSpan
from vmr_ray.evaluation.qvhighlights import (
    best_constant_metrics,
    clip_scores,
    qvhighlights_metrics,
    saliency_metrics,
)


def test_qvhighlights_metrics_by_length() -> None:
    metrics = qvhighlights_metrics([[[0, 10], [40, 60]], [[0, 8]]], [[[0, 10], [40, 60]], [[0, 10]]])
    assert metrics["r1_at_0.5"] == 100
    assert metrics["r1_at_0.8"] == 100
    assert metrics["r1_at_0.85"] == 50
    assert metrics["map_at_0.75"] == 100
    assert metrics["map"] == pytest.approx(100 * (1 + 0.7) / 2)
    # A moment of exactly 10 s is short. The 20 s one is middle: there the first query's top window misses.
    assert metrics["short_map_at_0.5"] == 100
    assert metrics["middle_map_at_0.5"] == 50
    assert metrics["middle_r1_at_0.5"] == 0
    assert not any(key.startswith("long_") for key in metrics)


def test_saliency_metrics_by_hand() -> None:
    # One annotator; clips rated good: 0 and 3. Ranked 2, 0, 3, 1: precision 1/2 and 2/3, lifted to 2/3.
    metrics = saliency_metrics([[0.8, 0.1, 0.9, 0.7]], [[[3], [0], [2], [4]]])
    assert metrics["hl_map_good"] == pytest.approx(100 * 2 / 3)
    assert metrics["hl_hit1_good"] == 0
    assert metrics["hl_hit1_fair"] == 100
    assert metrics["hl_map_fair"] == 100
    assert metrics["hl_map_very_good"] == pytest.approx(100 / 3)


def test_saliency_of_another_number_of_clips() -> None:
    true = [[[4, 0]], [[0, 0], [0, 3]]]
    # The top clip of the first query lies beyond its video; the second query's last clip scores 0.
    metrics = saliency_metrics([[0.1, 0.9], [-1.0]], true)
    assert metrics["hl_hit1_good"] == 0
    assert metrics["hl_map_good"] == pytest.approx(100 * (1 + 0 + 0 + 1) / 4)


def test_saliency_ties_are_one_step() -> None:
    # Both relevant clips are reached at once, with two others: precision 1/2.
    assert saliency_metrics([[1, 1, 1, 1]], [[[4], [4], [0], [0]]])["hl_map_good"] == 50


def test_a_clip_scores_the_mean_membership_of_its_time() -> None:
    # Frames of 1, 2 and 1.5 s: the first clip is half of each of two frames, the second 1 s and 1 s.
    assert clip_scores([0.2, 0.6, 1.0], [0, 1, 3, 4.5], 2).tolist() == pytest.approx([0.4, 0.8])
    # The third clip is covered up to 4.5 s only, the fourth not at all.
    assert clip_scores([0.2, 0.6, 1.0], [0, 1, 3, 4.5], 4).tolist() == pytest.approx([0.4, 0.8, 1.0, 0])
    # Nor is the time before the first frame.
    assert clip_scores([0.5, 0.1], [1, 2, 4], 2).tolist() == pytest.approx([0.5, 0.1])
    assert clip_scores([0.5], [0, 2], 0).tolist() == []


def test_each_metric_of_the_constant_is_that_of_its_best_list() -> None:
    early, late = ConstantSpan(0, 10, relative=False), ConstantSpan(0.5, 1, relative=True)
    truths, durations = [[[0, 10]], [[0, 10]], [[20, 40]]], [40.0, 40.0, 40.0]
    metrics = best_constant_metrics([[early], [late]], truths, durations)
    assert metrics["r1_at_0.5"] == pytest.approx(200 / 3)  # of the first list
    assert metrics["middle_map"] == 100  # of the second
    assert best_constant_metrics([], truths, durations) == {}


@pytest.mark.skipif(
    "VMR_BENCHMARK_DATA" not in os.environ, reason="set VMR_BENCHMARK_DATA to run on the real files"
)
@pytest.mark.parametrize(
    ("predictions", "printed"),
    [
        ("sample_val_preds.jsonl", "sample_val_preds_metrics_raw.json"),
        ("inference_hl_val_test_code_preds.jsonl", "inference_hl_val_test_code_preds_metrics.json"),
    ],
)
def test_agrees_with_the_qvhighlights_evaluator_to_the_last_digit(predictions: str, printed: str) -> None:
    data = Path(os.environ["VMR_BENCHMARK_DATA"])
    truth = data / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
    peer = data / "conformance" / "moment_detr"
    rows = {row["qid"]: row for row in map(json.loads, (peer / predictions).read_text().splitlines())}
    expected: dict[str, Any] = json.loads((peer / printed).read_text())

    annotations = read_annotations(truth)
    assert not annotations.problems
    ranked = [rows[row.qid] for row in annotations.rows if isinstance(row, Row)]
    saliency = [a.saliency for a in annotations.annotations if a.saliency is not None]
    windows = [[w[:2] for w in row["pred_relevant_windows"]] for row in ranked]
    metrics = qvhighlights_metrics(windows, [a.spans for a in annotations.annotations])
    metrics |= saliency_metrics([r["pred_saliency_scores"] for r in ranked], saliency)

    wanted: dict[str, float] = {}
    for length in ("full", "short", "middle", "long"):
        prefix = "" if length == "full" else f"{length}_"
        for theirs, ours in (("MR-mAP", "map"), ("MR-R1", "r1")):
            for at, value in expected[length][theirs].items():
                wanted[f"{prefix}{ours}" if at == "average" else f"{prefix}{ours}_at_{at}"] = value
    for theirs, level in (("Fair", "fair"), ("Good", "good"), ("VeryGood", "very_good")):
        for metric in ("mAP", "Hit1"):
            wanted[f"hl_{metric.lower()}_{level}"] = expected[f"HL-min-{theirs}"][f"HL-{metric}"]
    assert len(wanted) == 90
    assert {key: round(value, 2) for key, value in metrics.items()} == wanted
