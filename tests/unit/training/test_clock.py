"""The clock of a training, driven by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from vmr_ray.config import TrainConfig
from vmr_ray.training import loop
from vmr_ray.training.loop import Plan, schedule


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    return now


def run(plan: Plan, clock: list[float], epoch_s: float, validation_s: float = 0.0, steps: int = 10):
    """The training loop without the training; the progress at every step and when it ended."""
    seen, first = [], clock[0] - plan.now
    while plan.goes_on():
        plan.begin()
        for step in range(steps):
            done = plan.progress(step / steps)
            if step and done == 1:
                break
            seen.append(done)
            clock[0] += epoch_s / steps
        plan.end()
        if plan.due or not plan.goes_on():
            clock[0] += validation_s
            plan.validated()
    return seen, clock[0] - first


def limited(minutes: float, **settings: float) -> TrainConfig:
    return TrainConfig(epochs=10_000, max_minutes=minutes, **settings)


def test_without_a_limit_the_epochs_count(clock: list[float]):
    plan = Plan(TrainConfig(epochs=4), 1)
    assert run(plan, clock, 7.0, steps=2)[0] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    assert plan.epoch == plan.expected() == 4


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("validation", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("epoch", [2.0, 11.0, 130.0])
def test_it_ends_at_the_limit_with_the_rate_run_down(clock, epoch: float, validation: float, every: int):
    plan = Plan(limited(5, evaluate_every=every), 1)
    progress, seconds = run(plan, clock, epoch, validation)
    assert progress == sorted(progress)
    # What is left over is too short for another epoch between two validations; a step may be under way,
    # and nobody knows how long the first validation takes.
    unknown = validation if plan.epoch <= every else 0
    assert 300 - epoch / 10 - validation <= seconds + 1e-6
    assert seconds - 1e-6 <= 300 + epoch / 10 + unknown
    share = (epoch / 10 + validation) / (300 - validation)
    assert schedule(progress[-1], 0.05) <= schedule(1 - 2 * share, 0.05)


def test_uneven_epochs_leave_no_jump(clock: list[float]):
    """Each half or twice as long as the one before: the share of the time is what counts."""
    plan, seen = Plan(limited(5), 1), []
    lengths = iter([10.0, 20, 10, 5, 10, 40, 20, 10, 5, 10, 20, 40, 80, 40, 80])
    while plan.goes_on():
        plan.begin()
        step = next(lengths) / 10
        for at in range(10):
            done = plan.progress(at / 10)
            if at and done == 1:
                break
            seen.append(done)
            clock[0] += step
        plan.end()
    assert seen == sorted(seen) and max(b - a for a, b in pairwise(seen)) < 0.03
    assert 300 <= plan.now <= 308 and math.isclose(schedule(1.0, 0.05), 0.01)


def test_a_resumed_run_has_the_time_that_is_left(clock: list[float]):
    plan = Plan(limited(5), 1, epoch=20, clock=(220.0, 10.0, 0.0))
    assert plan.progress(0.0) == pytest.approx(220 / 300)
    run(plan, clock, 10.0)
    assert plan.epoch == 28
    assert not Plan(limited(5), 1, epoch=30, clock=(300.0, 10.0, 0.0)).goes_on()
    assert Plan(limited(6), 1, epoch=30, clock=(300.0, 10.0, 0.0)).goes_on()


def test_what_a_checkpoint_keeps_of_the_clock(clock: list[float]):
    plan = Plan(limited(5), 1)
    plan.begin()
    clock[0] += 30
    plan.end()
    clock[0] += 4
    assert plan.clock() == (34.0, 30.0, 4.0)


def test_one_step_at_least_and_never_more_epochs_than_asked(clock: list[float]):
    plan = Plan(TrainConfig(epochs=3, max_minutes=0.001), 1)
    assert len(run(plan, clock, 50.0)[0]) == plan.epoch == 1
    plan = Plan(TrainConfig(epochs=3, max_minutes=60), 1)
    run(plan, clock, 1.0)
    assert plan.epoch == 3
