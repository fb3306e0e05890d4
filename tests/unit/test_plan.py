"""The clock of a training, driven by hand."""

from __future__ import annotations

import pytest

from vmr_ray import train
from vmr_ray.config import TrainConfig
from vmr_ray.train import _Plan, _schedule


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    return now


def run(plan: _Plan, clock: list[float], epoch_s: float, between_s: float = 0.0) -> list[float]:
    """Epochs until the plan ends; the progress at the beginning and the end of each."""
    seen = []
    while plan.goes_on():
        plan.begin()
        seen.append(plan.progress(0.0))
        clock[0] += epoch_s
        seen.append(plan.progress(1.0))
        plan.end()
        clock[0] += between_s
    return seen


def test_without_a_limit_the_epochs_count(clock: list[float]) -> None:
    plan = _Plan(TrainConfig(epochs=4), 0, 0.0, 1)
    assert run(plan, clock, 7.0) == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert plan.epoch == plan.expected() == 4


@pytest.mark.parametrize("between", [0.0, 3.0])
def test_the_clock_ends_it_within_half_an_epoch_with_the_rate_run_down(
    clock: list[float], between: float
) -> None:
    plan = _Plan(TrainConfig(epochs=10_000, max_minutes=5), 0, 0.0, 1)
    progress = run(plan, clock, 11.0, between)
    assert abs(plan.now - 300) <= (11 + between)
    assert progress[-1] == pytest.approx(1, abs=0.05)
    assert _schedule(progress[-1], 0.05) < 0.02
    starts = progress[::2]
    assert starts == sorted(starts)


def test_a_resumed_run_has_the_time_that_is_left(clock: list[float]) -> None:
    plan = _Plan(TrainConfig(epochs=10_000, max_minutes=5), 20, 220.0, 1)
    assert plan.progress(0.0) == pytest.approx(220 / 300)
    run(plan, clock, 10.0)
    assert plan.epoch == 28
    assert not _Plan(TrainConfig(epochs=10_000, max_minutes=5), 30, 300.0, 1).goes_on()


def test_one_epoch_at_least_and_never_more_than_asked(clock: list[float]) -> None:
    plan = _Plan(TrainConfig(epochs=3, max_minutes=0.001), 0, 0.0, 1)
    run(plan, clock, 50.0)
    assert plan.epoch == 1
    plan = _Plan(TrainConfig(epochs=3, max_minutes=60), 0, 0.0, 1)
    run(plan, clock, 1.0)
    assert plan.epoch == 3
