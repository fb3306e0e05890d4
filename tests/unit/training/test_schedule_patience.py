from __future__ import annotations

import pytest

from vmr_ray.config import METRICS, TrainConfig, load_config
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.metrics import moment_metrics
from vmr_ray.training.schedule import out_of_patience


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ([], 2, False),
        ([10, 9], 2, False),
        ([10, 9, 8], 2, True),
        ([10, 9, 11], 2, False),
        ([10, 11, 9, 10.5], 2, True),
        ([10, 10, 10], 2, True),  # as good is not better
        ([10, 9, 8, 7, 6], None, False),
    ],
)
def test_patience_counts_validations_since_the_best(
    values: list[float], patience: int | None, ended: bool
) -> None:
    config = TrainConfig(patience=patience, metric="r1_at_0.7")
    history = [{"r1_at_0.7": value, "miou": float(i)} for i, value in enumerate(values)]
    assert out_of_patience(history, config) is ended


def test_an_unknown_metric_is_refused_before_anything_starts() -> None:
    with pytest.raises(VmrError, match=r"train\.metric.*r1_at_0\.5.*'accuracy'"):
        load_config(None, ["train.metric=accuracy"])


def test_fewest_workers_cannot_be_more_than_all() -> None:
    with pytest.raises(VmrError, match="min_workers=3 must be at most workers=2"):
        load_config(None, ["train.workers=2", "train.min_workers=3"])


def test_the_metrics_to_choose_from_are_those_of_a_validation() -> None:
    assert set(METRICS) == set(moment_metrics([[(0.0, 1.0)]], [[(0.0, 1.0)]]))
