from __future__ import annotations

from pathlib import Path

import pytest

from vmr_ray.config import ModelConfig
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, save_checkpoint
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.network_predictor import NetworkPredictor


def test_weights_are_loaded_into_a_network_predictor(tmp_path: Path):
    info = CheckpointInfo(
        model=ModelConfig(dim=16, heads=2, membership=False),
        frame_encoder="f",
        frame_dim=8,
        sampling="fps=1",
        text_encoder="minilm",
        token_dim=384,
    )
    saved = save_checkpoint(tmp_path, info.network().state_dict(), info)
    predictor = load_predictor(tmp_path)
    assert isinstance(predictor, NetworkPredictor)
    assert predictor.info == saved and not predictor.has_membership
    queries = predictor.encode_tokens(predictor.text(["a dog runs", "a cat"]))
    assert queries.vectors.shape == (2, 16)


def test_no_checkpoint(tmp_path: Path):
    with pytest.raises(VmrError, match="no checkpoint at"):
        load_predictor(tmp_path / "none")
