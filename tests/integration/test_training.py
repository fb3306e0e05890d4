"""How long a training takes, on how many processes, where it resumes, and sets larger than memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.nodes import titles
from vmr_ray.config import Config, TrainConfig
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.model.checkpoint import load_info, load_network
from vmr_ray.model.similarity_network import SimilarityNetwork
from vmr_ray.search.build import build_index
from vmr_ray.search.searcher import Searcher
from vmr_ray.training.prepare import Prepared, read_rows
from vmr_ray.training.resume import newest_whole
from vmr_ray.training.rows import CachedRows
from vmr_ray.training.train import train
from vmr_ray.training.unlabelled import train_unlabelled


def changed(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=settings)})


def training_processes() -> int:
    return sum("RayTrainWorker" in title for title in titles(os.getpid()).values())


def test_patience_ends_it_on_all_processes_and_lasts(features: Path, world, small: Config, tmp_path: Path):
    # Next to no learning: nothing gets better.
    config = changed(small, epochs=9, patience=2, metric="r5_at_0.3", lr=1e-12, workers=2)
    result = train(features, world.train, tmp_path, config)
    assert result.ended == result.history[-1]["ended"] == "patience"
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.metrics["epoch"] == load_info(result.best).epoch
    assert train(features, world.train, tmp_path, config).history == result.history


def test_the_limit_counts_over_all_attempts_whatever_they_run_on(
    features: Path, world, small: Config, tmp_path: Path
):
    """One process, then as many of three as there is room for: two on these two CPUs."""
    config = changed(small, epochs=10_000, max_minutes=0.1, evaluate_every=5)
    first = train(features, world.train, tmp_path, config)
    minutes = first.history[-1]["minutes"]
    assert first.ended == "max_minutes" and minutes > 0.05
    assert load_info(first.last).epoch == first.history[-1]["epoch"]

    # Much more than a validation takes on a busy machine, because the clock reserves time for one.
    longer = changed(config, max_minutes=2 * minutes + 0.1, workers=3, min_workers=1, cpus_per_worker=1.0)
    seen = []
    second = train(
        features, world.train, tmp_path, longer, report=lambda row: seen.append(training_processes())
    )
    assert second.history[: len(first.history) - 1] == first.history[:-1]
    assert second.history[-1]["minutes"] > minutes
    assert second.history[-1]["epoch"] > first.history[-1]["epoch"]
    assert max(seen) == 2


def test_a_damaged_checkpoint_is_skipped(features: Path, world, small: Config, tmp_path: Path):
    """The run resumes from the one before, which Ray Train may have forgotten."""
    first = train(features, world.train, tmp_path, small)
    assert [row["epoch"] for row in first.history] == [1, 2]
    newest = tmp_path / "run" / newest_whole(str(tmp_path))
    before = Path(shutil.copytree(newest, tmp_path / "run" / "checkpoint_before"))
    info = load_info(newest)
    assert info.epoch == 2
    (before / "checkpoint.json").write_text(info.model_copy(update={"epoch": 1}).model_dump_json())
    (before / "history.json").write_text(json.dumps(first.history[:1]))
    (newest / "history.json").write_bytes(b"")
    second = train(features, world.train, tmp_path, changed(small, epochs=3))
    assert [row["epoch"] for row in second.history] == [1, 2, 3]
    assert second.history[0] == first.history[0]
    assert second.history[1]["minutes"] != first.history[1]["minutes"]  # trained again


def test_a_set_larger_than_the_cache_is_streamed(cluster, trained):
    path = Path(trained.best).parent / "prepared" / "train"
    table = pq.ParquetDataset(path).read()
    names = sorted(table["video_id"].to_pylist())
    info, row_bytes = load_info(trained.best), table.nbytes // len(names)
    shard = read_rows(Prepared(str(path), [], [], 0), shuffled=True).iterator()
    streamed = CachedRows(shard, info, cache_gb=0, rows=6, row_bytes=row_bytes, world=1)
    epochs = [[e.video_id for batch in streamed.batches(2, seed) for e in batch] for seed in range(6)]
    assert all(sorted(epoch) == names for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert streamed.cached is None
    cached = CachedRows(shard, info, cache_gb=1, rows=6, row_bytes=row_bytes, world=1)
    for seed in range(2):
        batches = list(cached.batches(2, seed))
        assert sorted(e.video_id for batch in batches for e in batch) == names
    assert cached.cached is not None and len(cached.cached) == len(names)
    features = dict(zip(table["video_id"].to_pylist(), table["features"].to_pylist(), strict=True))
    assert all(e.features.tobytes() == features[e.video_id] for e in cached.cached)


def test_training_without_annotations(features: Path, world, tmp_path: Path):
    """A short one; what a long one is worth is measured by `python -m benchmarks.untrained`."""
    config = Config(train=TrainConfig(epochs=100, cpus_per_worker=0.5, max_minutes=0.15))
    result = train_unlabelled(features, tmp_path / "run", config)
    assert result.train_queries > result.val_queries > 0
    network, _ = load_network(result.last)
    assert isinstance(network, SimilarityNetwork) and network.residual is not None
    assert network.residual.boundary.weight.abs().max() > 0
    assert build_index(features, result.last, tmp_path / "index").videos == 9
    found = Searcher(tmp_path / "index").search("a red circle moves", top_k=1)
    assert found.moments[0].end > found.moments[0].start
    assert evaluate(features, world.test, result.last).model["miou"] > 0
    with pytest.raises(VmrError, match="holds a run with other"):
        train_unlabelled(features, tmp_path / "run", Config(train=TrainConfig(lr=0.1)))
