import numpy as np
import pytest

from vmr_ray.model.presence import KEPT, Presence, fit_presence


def test_probability_by_hand():
    presence = Presence(slope=2.0, intercept=-1.0, min_probability=0.3)
    assert presence.probability(0.5) == 0.5
    assert presence.probability(1.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert presence.probability(1e9) == 1.0 and presence.probability(-1e9) == 0.0


def test_of_any_is_bayes_with_one_window_at_most():
    presence = Presence(slope=1.0, intercept=0.0, min_probability=0.3)
    odds = np.exp([2.0, -1.0])
    # One window: the same as its own probability.
    assert presence.of_any([2.0], 1) == pytest.approx(presence.probability(2.0))
    # Each of four windows has a prior of 1/8, nothing one of 1/2; two were not looked into.
    shown = odds.sum() / 8
    assert presence.of_any([2.0, -1.0], 4) == pytest.approx(shown / (shown + 1 / 2))
    assert presence.of_any([], 0) == 0.0


def test_fit_finds_the_probabilities_that_made_the_kinds():
    rng = np.random.default_rng(0)
    true = Presence(slope=1.5, intercept=-3.0, min_probability=0.0)
    scores = rng.normal(2.0, 1.5, 40_000)
    shown = rng.random(len(scores)) < [true.probability(score) for score in scores]
    fitted = fit_presence(scores[shown], scores[~shown])
    assert fitted is not None
    # Both kinds count the same, so the odds are those of the scores over those of all scores.
    shift = np.log((~shown).sum() / shown.sum())
    assert fitted.slope == pytest.approx(1.5, rel=0.05)
    assert fitted.intercept == pytest.approx(-3.0 + shift, abs=0.1)
    kept = np.mean([fitted.probability(s) >= fitted.min_probability for s in scores[shown]])
    assert kept == pytest.approx(KEPT, abs=0.001)


def test_more_of_one_kind_changes_nothing():
    rng = np.random.default_rng(1)
    shown, absent = rng.normal(1, 1, 500), rng.normal(-1, 1, 500)
    once, often = fit_presence(shown, absent), fit_presence(shown, np.tile(absent, 5))
    assert once is not None and often is not None
    assert often.slope == pytest.approx(once.slope, rel=0.02)
    assert often.intercept == pytest.approx(once.intercept, abs=0.02)


def test_kinds_without_overlap_have_a_finite_slope():
    presence = fit_presence(np.linspace(5, 6, 50), np.linspace(0, 1, 50))
    assert presence is not None and np.isfinite(presence.slope)
    assert presence.probability(1.0) < 0.05 < 0.95 < presence.probability(5.0)


@pytest.mark.parametrize(
    ("shown", "absent"),
    (
        ([], []),
        ([1.0] * 9, [0.0] * 50),  # too few
        ([1.0] * 50, [1.0] * 50),  # all equal
        (np.linspace(0, 1, 50), np.linspace(1, 2, 50)),  # own videos score lower
    ),
)
def test_scores_that_tell_nothing_give_no_calibration(shown, absent):
    assert fit_presence(shown, absent) is None
