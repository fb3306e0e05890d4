"""The clock of a training, driven by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from vmr_ray.config import TrainConfig
from vmr_ray.training import schedule
from vmr_ray.training.schedule import TrainingClock, lr_factor


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    return now


def run(clock: TrainingClock, now: list[float], epoch_s: float, validation_s: float = 0.0, steps: int = 10):
    """The training loop without the training; the progress at every step and when it ended."""
    shares, first = [], now[0] - clock.elapsed
    while clock.has_next_epoch():
        clock.begin_epoch()
        for step in range(steps):
            done = clock.progress(step / steps)
            if step and done == 1:
                break
            shares.append(done)
            now[0] += epoch_s / steps
        clock.end_epoch()
        if clock.validation_due or not clock.has_next_epoch():
            now[0] += validation_s
            clock.end_validation()
    return shares, now[0] - first


def limited(minutes: float, **settings: float) -> TrainConfig:
    return TrainConfig(epochs=10_000, max_minutes=minutes, **settings)


def test_without_a_limit_the_epochs_count(now: list[float]):
    clock = TrainingClock(TrainConfig(epochs=4), 1)
    assert run(clock, now, 7.0, steps=2)[0] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    assert clock.epoch == clock.expected_epochs() == 4


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("validation", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("epoch", [2.0, 11.0, 130.0])
def test_it_ends_at_the_limit_with_the_rate_run_down(now, epoch: float, validation: float, every: int):
    clock = TrainingClock(limited(5, evaluate_every=every), 1)
    progress, seconds = run(clock, now, epoch, validation)
    assert progress == sorted(progress)
    # What is left over is too short for another epoch between two validations; a step may be under way,
    # and nobody knows how long the first validation takes.
    unknown = validation if clock.epoch <= every else 0
    assert 300 - epoch / 10 - validation <= seconds + 1e-6
    assert seconds - 1e-6 <= 300 + epoch / 10 + unknown
    share = (epoch / 10 + validation) / (300 - validation)
    assert lr_factor(progress[-1], 0.05) <= lr_factor(1 - 2 * share, 0.05)


def test_uneven_epochs_leave_no_jump(now: list[float]):
    """Each half or twice as long as the one before: the share of the time is what counts."""
    clock, shares = TrainingClock(limited(5), 1), []
    lengths = iter([10.0, 20, 10, 5, 10, 40, 20, 10, 5, 10, 20, 40, 80, 40, 80])
    while clock.has_next_epoch():
        clock.begin_epoch()
        step = next(lengths) / 10
        for at in range(10):
            done = clock.progress(at / 10)
            if at and done == 1:
                break
            shares.append(done)
            now[0] += step
        clock.end_epoch()
    assert shares == sorted(shares) and max(b - a for a, b in pairwise(shares)) < 0.03
    assert 300 <= clock.elapsed <= 308 and math.isclose(lr_factor(1.0, 0.05), 0.01)


def test_a_resumed_run_has_the_time_that_is_left(now: list[float]):
    clock = TrainingClock(limited(5), 1, epoch=20, saved=(220.0, 10.0, 0.0))
    assert clock.progress(0.0) == pytest.approx(220 / 300)
    run(clock, now, 10.0)
    assert clock.epoch == 28
    assert not TrainingClock(limited(5), 1, epoch=30, saved=(300.0, 10.0, 0.0)).has_next_epoch()
    assert TrainingClock(limited(6), 1, epoch=30, saved=(300.0, 10.0, 0.0)).has_next_epoch()


def test_what_a_checkpoint_keeps_of_the_clock(now: list[float]):
    clock = TrainingClock(limited(5), 1)
    clock.begin_epoch()
    now[0] += 30
    clock.end_epoch()
    now[0] += 4
    assert clock.to_save() == (34.0, 30.0, 4.0)


def test_one_step_at_least_and_never_more_epochs_than_asked(now: list[float]):
    clock = TrainingClock(TrainConfig(epochs=3, max_minutes=0.001), 1)
    assert len(run(clock, now, 50.0)[0]) == clock.epoch == 1
    clock = TrainingClock(TrainConfig(epochs=3, max_minutes=60), 1)
    run(clock, now, 1.0)
    assert clock.epoch == 3
