"""What tests share: one Ray session, and the artefacts of one small run through every step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when Ray is imported. A token file in the home directory must not change what is tested.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray session for all integration tests."""
    import ray

    from vmr_ray.cluster import connect

    connect(address="local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A few generated videos with annotations."""
    from vmr_ray.demo.world import render_world

    return render_world(tmp_path_factory.mktemp("world"), train_videos=6, test_videos=3)


@pytest.fixture(scope="session")
def features(cluster, world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their feature store."""
    from vmr_ray.embedding.embed import embed

    out = tmp_path_factory.mktemp("features")
    assert embed([world.videos], out).embedded == 9
    return out


@pytest.fixture(scope="session")
def small():
    """A config that trains in seconds."""
    from vmr_ray.config import Config, ModelConfig, TrainConfig

    return Config(
        model=ModelConfig(dim=32, heads=2, video_layers=1, cross_layers=1),
        train=TrainConfig(epochs=2, cpus_per_worker=0.5),
    )


@pytest.fixture(scope="session")
def trained(features, world, small, tmp_path_factory: pytest.TempPathFactory):
    """A trained run."""
    from vmr_ray.training.train import train

    return train(features, world.train, tmp_path_factory.mktemp("run"), small)


@pytest.fixture(scope="session")
def index(features, trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of all videos."""
    from vmr_ray.search.build import build_index

    out = tmp_path_factory.mktemp("index")
    assert build_index(features, trained.best, out).videos == 9
    return out
