"""A training process dies at work; the training goes on by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.nodes import descendants
from vmr_ray.checkpoint import load_network
from vmr_ray.config import Config, ModelConfig, TrainConfig
from vmr_ray.train import train

EVERY = 10  # epochs from one checkpoint to the next


@pytest.mark.parametrize(
    ("workers", "moment"), [(1, "just after a report"), (2, "in the middle of an epoch")]
)
def test_a_killed_training_process_costs_one_interval_at_most(
    cluster, features: Path, world, tmp_path: Path, workers: int, moment: str
):
    config = Config(
        model=ModelConfig(dim=32, heads=2),
        train=TrainConfig(workers=workers, cpus_per_worker=0.4, epochs=4 * EVERY, evaluate_every=EVERY),
    )
    rows: list[dict[str, float]] = []
    killed: dict[str, int] = {}

    def report(row: dict[str, float]) -> None:
        rows.append(row)
        checkpoint = "miou" in row
        due = checkpoint if moment == "just after a report" else 3 <= row["epoch"] % EVERY <= 7
        if not killed and row["epoch"] > EVERY and due:
            killed["pid"], killed["at"] = kill_training_process(), len(rows)

    result = train(features, world.train, tmp_path / "run", config, report=report)
    assert killed["pid"]
    assert [row["epoch"] for row in result.history] == [EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY]
    epochs = [int(row["epoch"]) for row in rows]
    again = [i for i, (a, b) in enumerate(pairwise(epochs), start=1) if b <= a]
    # It went back once at most (not at all if all was stored), by no more than an interval.
    assert len(again) <= 1
    assert all(epochs[i - 1] - epochs[i] < EVERY for i in again)
    assert again or moment == "just after a report"
    assert result.history[0] == next(row for row in rows if row["epoch"] == EVERY)
    network, info = load_network(result.last)
    assert info.epoch == 4 * EVERY
    assert all(np.isfinite(p.detach().numpy()).all() for p in network.parameters())
    assert json.loads((tmp_path / "run" / "history.json").read_text()) == result.history


def kill_training_process() -> int:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
                os.kill(pid, signal.SIGKILL)
                return pid
    raise AssertionError("no training process runs")
