from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vmr_ray.config import Config, load_config
from vmr_ray.model.cross_interaction import CrossInteraction


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "accuracy.py"
    spec = importlib.util.spec_from_file_location("accuracy", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_of_the_ablation_is_another_training(accuracy: ModuleType) -> None:
    configs = {row: load_config(None, list(changes)) for row, changes in accuracy.VARIANTS.items()}
    assert configs.pop("defaults") == Config()
    assert len({config.model_dump_json() for config in configs.values()} | {Config().model_dump_json()}) == (
        len(configs) + 1
    )
    for config in configs.values():
        assert sum(p.numel() for p in CrossInteraction(config.model, 16, 12).parameters())


def test_speed_is_measured_on_a_checkpoint(accuracy: ModuleType, tmp_path: Path) -> None:
    from vmr_ray.config import ModelConfig
    from vmr_ray.model.checkpoint import CheckpointInfo, save_checkpoint

    info = CheckpointInfo(
        model=ModelConfig(dim=32, fusion_dim=16, heads=2),
        frame_encoder="f",
        frame_dim=16,
        sampling="fps=1",
        text_encoder="minilm",
        token_dim=12,
    )
    save_checkpoint(tmp_path, info.network().state_dict(), info)
    figures = accuracy.speed(tmp_path, frames=40, queries=4)
    assert figures["batch_ratio"] == pytest.approx(figures["one_query_ms"] / figures["batch_of_32_query_ms"])
