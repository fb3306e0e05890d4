"""When a training ends, when it validates, and the learning rate on the way. No network, no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from vmr_ray.config import TrainConfig
from vmr_ray.training.processes import gather_objects


def lr_factor(progress: float, warmup: float) -> float:
    """The share of the learning rate at `progress`, the share of the training done.

    Linear warm-up, then half a cosine down to 1 %.
    """
    done = min(progress, 1.0)
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


def out_of_patience(history: Sequence[dict[str, float]], config: TrainConfig) -> bool:
    """Whether none of the last `patience` validations was better than the best one before them."""
    if config.patience is None or len(history) <= config.patience:
        return False
    values = [row[config.metric] for row in history]
    return max(values[-config.patience :]) <= max(values[: -config.patience])


class TrainingClock:
    """How much of the training is done: by epochs, or by time where the limit `max_minutes` comes earlier.

    Time includes validations and earlier attempts. It is measured by rank 0, because all processes must
    agree on the learning rate and on the end. The last epoch ends when there is just time for another
    validation, if that takes as long as the one before.

    The calls of an epoch: `has_next_epoch`, `begin_epoch`, `progress` before every step, `end_epoch`, and
    `end_validation` if there was one.

    Attributes:
        epoch: epochs done.
        elapsed: seconds of the whole training, as of the last call.
        epoch_s, validation_s: seconds of the last epoch and of the last validation.
        validation_due: whether a validation must come before the next epoch.
    """

    def __init__(
        self, config: TrainConfig, world: int, epoch: int = 0, saved: Sequence[float] = (0, 0, 0)
    ) -> None:
        """epoch and saved: of the checkpoint that the training resumes from, see `to_save`."""
        self.epochs, self.every, self.world = config.epochs, config.evaluate_every, world
        self.limit = 60 * config.max_minutes if config.max_minutes else math.inf
        self.epoch = epoch
        self.elapsed, self.epoch_s, self.validation_s = saved
        self.validation_due = False
        self.time_is_up = False
        self.origin = time.monotonic() - self.elapsed

    def to_save(self) -> tuple[float, float, float]:
        """What a resumed training needs: elapsed, epoch_s, validation_s. Called during a validation."""
        seconds = time.monotonic() - self.origin
        return seconds, self.epoch_s, self.validation_s or seconds - self.elapsed

    def has_next_epoch(self) -> bool:
        """Whether another epoch comes: always a first one, then as long as a tenth of one fits the limit."""
        if self.time_is_up:
            return False
        if not self.epoch:
            return True
        begins = self.elapsed + self.validation_due * self.validation_s
        return self.epoch < self.epochs and begins + self.epoch_s / 10 < self.limit - self.validation_s

    def begin_epoch(self) -> None:
        self._measure()
        self.began = self.elapsed

    def end_epoch(self) -> None:
        self._measure()
        self.epoch, self.epoch_s = self.epoch + 1, self.elapsed - self.began
        self.validation_due = self.epoch % self.every == 0

    def end_validation(self) -> None:
        before = self.elapsed
        self._measure()
        self.validation_s, self.validation_due = self.elapsed - before, False

    def progress(self, share: float) -> float:
        """The share of the training that is done when `share` of the current epoch is; 1 is the end."""
        by_epochs = (self.epoch + share) / self.epochs
        if self.limit == math.inf:
            return by_epochs
        self._measure()
        by_time = min(1.0, self.elapsed / max(1e-9, self.limit - self.validation_s))
        self.time_is_up = by_time == 1
        return max(by_epochs, by_time)

    def expected_epochs(self) -> int:
        """How many epochs the whole training will have, as far as known after the first one."""
        if not self.has_next_epoch():
            return self.epoch
        return max(self.epoch + 1, round(min(self.epochs, self.epoch * self.limit / self.elapsed)))

    def _measure(self) -> None:
        self.elapsed = gather_objects(time.monotonic() - self.origin, self.world)[0]
