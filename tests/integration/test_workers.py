"""One training process or two: the same training."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmr_ray.config import Config, ModelConfig, TrainConfig
from vmr_ray.training.train import train


def test_two_workers_train_as_one_does(cluster, features: Path, world, tmp_path: Path):
    """The same global batch, nothing drawn at random: the losses of every epoch agree.

    A batch contains all videos, so their order does not matter. The differences that remain come from
    rounding, and from the mean over pairs, which becomes a mean of two means.
    """
    losses, metrics = {}, {}
    for workers in (1, 2):
        config = Config(
            model=ModelConfig(dim=32, heads=2, dropout=0.0),
            train=TrainConfig(
                workers=workers,
                cpus_per_worker=0.4,
                batch_videos=8,
                queries_per_video=100,
                fused_pairs=1000,
                foreign_pairs=0.0,
                compose=0.0,
                keep_tokens=1.0,
                epochs=15,
                evaluate_every=15,
                val_fraction=0.34,
            ),
        )
        rows = []
        result = train(features, world.train, tmp_path / str(workers), config, report=rows.append)
        losses[workers] = {row["epoch"]: row["loss/total"] for row in rows}
        metrics[workers] = result.history[-1]["miou"]
    assert losses[1].keys() == losses[2].keys()
    for epoch, loss in losses[1].items():
        assert losses[2][epoch] == pytest.approx(loss, rel=0.05)
    assert losses[1][15] < 0.9 * losses[1][1]
    assert metrics[2] == pytest.approx(metrics[1], abs=10)
