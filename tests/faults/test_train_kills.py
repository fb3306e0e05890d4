"""A training process is killed; the training resumes by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.nodes import titles
from vmr_ray.config import Config, ModelConfig, TrainConfig
from vmr_ray.model.checkpoint import load_network
from vmr_ray.training.train import train

EVERY = 10  # epochs from one checkpoint to the next


def test_a_killed_training_process_costs_one_interval_at_most(cluster, features: Path, world, tmp_path: Path):
    """One of two processes is killed just after a report, and later one in the middle of an epoch."""
    config = Config(
        model=ModelConfig(dim=32, heads=2),
        train=TrainConfig(workers=2, cpus_per_worker=0.4, epochs=5 * EVERY, evaluate_every=EVERY),
    )
    rows: list[dict[str, float]] = []
    killed: list[int] = []

    def report(row: dict[str, float]) -> None:
        rows.append(row)
        after_report = not killed and "miou" in row
        middle = len(killed) == 1 and row["epoch"] > 3 * EVERY and 3 <= row["epoch"] % EVERY <= 7
        if after_report or middle:
            killed.append(kill_training_process())

    result = train(features, world.train, tmp_path / "run", config, report=report)
    assert len(killed) == 2
    assert [row["epoch"] for row in result.history] == [n * EVERY for n in range(1, 6)]
    epochs = [int(row["epoch"]) for row in rows]
    again = [i for i, (a, b) in enumerate(pairwise(epochs), start=1) if b <= a]
    # It went back by no more than an interval: once for the kill in the middle of an epoch, and once more if
    # the other kill came before the checkpoint was stored.
    assert 1 <= len(again) <= 2
    assert all(epochs[i - 1] - epochs[i] < EVERY for i in again)
    assert result.history[0] in rows
    network, info = load_network(result.last)
    assert info.epoch == 5 * EVERY
    assert all(np.isfinite(p.detach().numpy()).all() for p in network.parameters())
    assert json.loads((tmp_path / "run" / "history.json").read_text()) == result.history


def kill_training_process() -> int:
    for pid, title in titles(os.getpid()).items():
        if "RayTrainWorker" in title:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                return pid
    raise AssertionError("no training process runs")
