from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmr_ray.annotations import read_annotations, read_highlights
from vmr_ray.evaluation.metrics import (
    ConstantSpan,
    average_precision,
    best_constant_span,
    candidate_recall,
    corpus_metrics,
    iou,
    mean_iou,
    moment_metrics,
    qvhighlights_metrics,
    recall_at,
    saliency_metrics,
)

benchmark = pytest.mark.skipif(
    "VMR_BENCHMARK_DATA" not in os.environ, reason="set VMR_BENCHMARK_DATA to run on the real files"
)


def test_iou_is_continuous() -> None:
    found = iou([[0, 10], [5, 5]], [[0, 10], [5, 15], [10, 20], [30, 40], [5, 5], [2, 4]])
    assert found.tolist() == [
        [1, pytest.approx(1 / 3), 0, 0, 0, pytest.approx(0.2)],
        [0, 0, 0, 0, 0, 0],
    ]


def test_iou_agrees_with_counting_on_a_fine_grid() -> None:
    random = np.random.default_rng(0)
    spans = np.sort(random.integers(0, 50, (40, 2)), axis=1)
    ticks = np.arange(50)
    covered = (spans[:, :1] <= ticks) & (ticks < spans[:, 1:])
    both = (covered[:, None] & covered[None]).sum(-1)
    either = (covered[:, None] | covered[None]).sum(-1)
    np.testing.assert_allclose(iou(spans, spans), both / np.maximum(either, 1))


# IoU of the ranked predictions with the truth: 0.5, 1 | 0 | 0.25 and 0.8 with the better of two | none.
PREDICTIONS = [[[0, 5], [0, 10]], [[50, 60]], [[0, 2.5], [20, 28]], []]
TRUTHS = [[[0, 10]], [[0, 10]], [[0, 10], [20, 30]], [[0, 10]]]


def test_recall_and_mean_iou_by_hand() -> None:
    assert recall_at(PREDICTIONS, TRUTHS, 1, 0.5) == 25  # IoU equal to the threshold is a hit
    assert recall_at(PREDICTIONS, TRUTHS, 1, 0.2) == 50
    assert recall_at(PREDICTIONS, TRUTHS, 5, 0.7) == 50
    assert mean_iou(PREDICTIONS, TRUTHS) == pytest.approx(100 * (0.5 + 0 + 0.25 + 0) / 4)
    assert moment_metrics(PREDICTIONS, TRUTHS) == {
        "r1_at_0.3": 25,
        "r1_at_0.5": 25,
        "r1_at_0.7": 0,
        "r5_at_0.3": 50,
        "r5_at_0.5": 50,
        "r5_at_0.7": 50,
        "miou": pytest.approx(18.75),
    }


def test_malformed_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        moment_metrics([], [])
    with pytest.raises(ValueError, match="as many"):
        moment_metrics(PREDICTIONS, TRUTHS[:2])
    with pytest.raises(ValueError, match="no true span"):
        moment_metrics([[[0, 1]]], [[]])
    with pytest.raises(ValueError, match=r"\[n, 2\], got \[2, 3\]"):
        moment_metrics([[[0, 1, 0.9], [2, 3, 0.8]]], [[[0, 1]]])


def test_corpus_recall_needs_the_right_video() -> None:
    predictions = [
        [("b", 0.0, 10.0), ("a", 0.0, 6.0), ("a", 0.0, 10.0)],
        [("b", 0.0, 10.0)],
        [],
    ]
    truths = [("a", [[0, 10]]), ("b", [[0, 10]]), ("c", [[0, 10]])]
    third = pytest.approx(100 / 3)
    assert corpus_metrics(predictions, truths, ks=(1, 2, 3)) == {
        "corpus_r1_at_0.5": third,
        "corpus_r1_at_0.7": third,
        "corpus_r2_at_0.5": pytest.approx(200 / 3),
        "corpus_r2_at_0.7": third,
        "corpus_r3_at_0.5": pytest.approx(200 / 3),
        "corpus_r3_at_0.7": pytest.approx(200 / 3),
    }
    assert candidate_recall([["b", "a"], ["b"], []], ["a", "b", "c"]) == pytest.approx(200 / 3)


def test_average_precision_by_hand() -> None:
    truths = [[[0, 10], [20, 30]]]
    # Hit, a second prediction of the same truth (a miss), hit: precision 1 and 2/3 at recall 1/2 and 1.
    found = average_precision([[[0, 10], [0, 9], [20, 30]]], truths, thresholds=(0.5, 0.95))
    assert found.tolist() == [[pytest.approx((1 + 2 / 3) / 2)] * 2]
    # Miss, hit, hit: 1/2 then 2/3, and interpolation lifts the first to 2/3.
    found = average_precision([[[50, 60], [0, 10], [20, 30]]], truths, thresholds=(0.5,))
    assert found.tolist() == [[pytest.approx(2 / 3)]]
    # Only the top windows count; no prediction is no precision.
    assert average_precision([[[50, 60], [0, 10]]], truths, windows=1).sum() == 0
    assert average_precision([[]], truths).tolist() == [[0.0] * 10]


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


def test_constant_span_is_clipped_to_the_video() -> None:
    assert ConstantSpan(0.25, 0.5, relative=True).predict(40.0) == (10.0, 20.0)
    assert ConstantSpan(2.0, 12.0, relative=False).predict(8.0) == (2.0, 8.0)


def test_best_constant_span_finds_the_rule_of_the_data() -> None:
    random = np.random.default_rng(0)
    durations = random.uniform(20, 60, 200)
    fractions = np.tile([0.2, 0.6], (200, 1))
    found = best_constant_span(fractions * durations[:, None], durations)
    assert found.relative
    assert (found.start, found.end) == pytest.approx((0.2, 0.6))

    seconds = np.tile([3.0, 9.0], (200, 1))
    assert best_constant_span(seconds, durations) == ConstantSpan(3.0, 9.0, relative=False)


def test_best_constant_span_serves_its_objective() -> None:
    # Two fifths of the moments are [0, 4), the rest spread: the first wins at a high IoU only.
    spans = [[0, 4]] * 4 + [[0, 16], [0, 17], [0, 18], [0, 19], [0, 20], [0, 15]]
    durations = [20.0] * 10

    def score(constant: ConstantSpan, threshold: float) -> float:
        predictions = [[constant.predict(d)] for d in durations]
        return recall_at(predictions, [[s] for s in spans], 1, threshold)

    by_iou, by_recall = best_constant_span(spans, durations), best_constant_span(spans, durations, 0.95)
    assert by_iou.predict(20.0)[1] > 10
    assert score(by_recall, 0.95) == 40 > score(by_iou, 0.95)


def test_best_constant_span_needs_every_duration() -> None:
    with pytest.raises(ValueError, match="durations must be above 0"):
        best_constant_span([[0, 4], [1, 2]], [10.0, None])


@benchmark
def test_constant_span_on_charades_sta() -> None:
    folder = Path(os.environ["VMR_BENCHMARK_DATA"]) / "annotations" / "charades_sta"
    train = read_annotations(folder / "charades_sta_train.txt").annotations
    test = read_annotations(folder / "charades_sta_test.txt").annotations
    spans, durations = [a.spans[0] for a in train], [a.duration for a in train]

    def recalls(threshold: float | None) -> list[float]:
        constant = best_constant_span(spans, durations, threshold)
        predictions = [[constant.predict(a.duration or 0)] for a in test]
        metrics = moment_metrics(predictions, [a.spans for a in test], ks=(1,))
        return [round(value, 1) for value in metrics.values()]

    assert recalls(0.7) == [44.1, 30.5, 17.3, 29.6]
    assert recalls(None) == [49.3, 26.9, 11.2, 30.5]


@benchmark
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

    highlights = read_highlights(truth)
    ranked = [rows[h.qid] for h in highlights]
    windows = [[w[:2] for w in row["pred_relevant_windows"]] for row in ranked]
    metrics = qvhighlights_metrics(windows, [a.spans for a in read_annotations(truth).annotations])
    metrics |= saliency_metrics([r["pred_saliency_scores"] for r in ranked], [h.saliency for h in highlights])

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
