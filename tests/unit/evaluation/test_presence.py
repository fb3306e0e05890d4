import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vmr_ray.evaluation.presence import (
    auroc,
    average_precision,
    calibration_error,
    rejection,
    reliability,
    threshold_of_recall,
)


def test_by_hand():
    shown, values = [True, True, False, True, False], [0.9, 0.8, 0.7, 0.6, 0.1]
    # Of the 6 pairs one is the wrong way round: 0.6 below 0.7.
    assert auroc(shown, values) == pytest.approx(5 / 6)
    assert average_precision(shown, values) == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert threshold_of_recall(shown, values, 1.0) == 0.6
    assert threshold_of_recall(shown, values, 2 / 3) == 0.8
    assert rejection(shown, values, 1.0) == 0.5
    assert rejection(shown, values, 2 / 3) == 1.0


def test_equal_values_say_nothing():
    assert auroc([True, False, True, False], [0.5] * 4) == 0.5
    assert average_precision([True, False, True, False], [0.5] * 4) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    shown, values = rng.random(200) < 0.3, rng.integers(0, 20, 200) / 20  # with ties
    assert auroc(shown, values) == pytest.approx(roc_auc_score(shown, values))
    assert average_precision(shown, values) == pytest.approx(average_precision_score(shown, values))


def test_calibration():
    rows = reliability([True, False, False, False, True, True], [0.25, 0.25, 0.25, 0.25, 0.95, 1.0])
    assert rows == [
        {"queries": 4, "probability": 0.25, "shown": 0.25},
        {"queries": 2, "probability": pytest.approx(0.975), "shown": 1.0},
    ]
    assert calibration_error(rows) == pytest.approx((4 * 0 + 2 * 0.025) / 6)


@pytest.mark.parametrize("shown", ([], [True, True], [False]))
def test_one_kind_only_is_an_error(shown):
    with pytest.raises(ValueError, match="some are shown and some are not"):
        auroc(shown, [0.5] * len(shown))
