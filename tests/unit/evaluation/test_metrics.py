from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vmr_ray.annotations import read_annotations
from vmr_ray.evaluation.metrics import (
    ConstantSpan,
    average_precision,
    best_constant_span,
    candidate_recall,
    corpus_metrics,
    iou,
    metric_label,
    moment_metrics,
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
    few = moment_metrics(PREDICTIONS, TRUTHS, ks=(1,), thresholds=(0.5, 0.2))
    assert few == {
        "r1_at_0.5": 25,  # IoU equal to the threshold is a hit
        "r1_at_0.2": 50,
        "miou": pytest.approx(100 * (0.5 + 0 + 0.25 + 0) / 4),
    }
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
        return moment_metrics(predictions, [[s] for s in spans], (1,), (threshold,))[f"r1_at_{threshold}"]

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


def test_labels_are_those_of_papers() -> None:
    assert [metric_label(name) for name in ("r1_at_0.5", "corpus_r100_at_0.7", "miou")] == [
        "R@1 IoU=0.5",
        "R@100 IoU=0.7",
        "mIoU",
    ]
    assert [metric_label(name) for name in ("map", "map_at_0.75", "short_map")] == [
        "mAP",
        "mAP IoU=0.75",
        "mAP, short moments",
    ]
    assert [metric_label(name) for name in ("hl_map_very_good", "hl_hit1_fair")] == [
        "highlight mAP, very good",
        "highlight HIT@1, fair",
    ]
