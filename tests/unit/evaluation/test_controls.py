from __future__ import annotations

import numpy as np
import pytest

from vmr_ray.evaluation.controls import constant_metrics, derangement, fit_constants


def test_constants_find_what_always_holds():
    durations = [10.0, 20.0, 40.0]
    spans = [(0.25 * d, 0.75 * d) for d in durations]
    found = constant_metrics(fit_constants(spans, durations), [[s] for s in spans], durations)
    assert found["r1_at_0.7"] == 100 and found["r5_at_0.7"] == 100
    assert found["miou"] == pytest.approx(100, abs=3)


def test_five_answers_cover_more_than_one():
    rng = np.random.default_rng(0)
    starts = rng.choice([0.0, 20.0, 40.0, 60.0, 80.0], 200)
    spans = [(s, s + 20) for s in starts]
    durations = [100.0] * len(spans)
    found = constant_metrics(fit_constants(spans, durations), [[s] for s in spans], durations)
    assert found["r1_at_0.7"] < 40 and found["r5_at_0.7"] > 95


def test_derangement_moves_everything():
    for n in (2, 3, 17):
        order = derangement(n)
        assert sorted(order) == list(range(n))
        assert all(i != j for i, j in enumerate(order))
