from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.builders import checkpoint_info
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, load_network
from vmr_ray.model.checkpoint import save_checkpoint as save
from vmr_ray.schema import StoreSpec


@pytest.fixture
def info() -> CheckpointInfo:
    return checkpoint_info()


@pytest.fixture
def saved(info: CheckpointInfo, tmp_path: Path) -> Path:
    save(tmp_path, info.network().state_dict(), info)
    return tmp_path


def test_round_trip(info: CheckpointInfo, tmp_path: Path):
    network = info.network().eval()
    version = save(tmp_path, network.state_dict(), info).version
    loaded, back = load_network(tmp_path)
    assert back.version == version and back.model == info.model
    x, mask = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    assert torch.equal(network.encode_video(x, mask), loaded.encode_video(x, mask))


def test_no_checkpoint(tmp_path: Path):
    with pytest.raises(VmrError, match="no checkpoint at"):
        load_network(tmp_path / "none")


def test_truncated_weights(saved: Path):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VmrError, match="truncated or altered"):
        load_network(saved)


def test_missing_weights(saved: Path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(VmrError, match="cannot read"):
        load_network(saved)


def test_truncated_json(saved: Path):
    path = saved / "checkpoint.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(VmrError, match="is damaged"):
        load_network(saved)


def test_other_format(saved: Path):
    path = saved / "checkpoint.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(VmrError, match="format 99"):
        load_network(saved)


def test_other_features_are_refused(info: CheckpointInfo):
    with pytest.raises(VmrError, match="trained on efficientnet-lite0 at fps=1"):
        info.check_features(StoreSpec("efficientnet-lite0", 8, "fps=2"), "store")


def test_frames_of_another_fit_are_refused(info: CheckpointInfo):
    spec = StoreSpec("efficientnet-lite0", 8, "fps=1", fit="pad")
    with pytest.raises(VmrError, match="made square by pad, the checkpoint was trained on squash"):
        info.check_features(spec, "store")
    padded = info.model_copy(update={"fit": "pad"})
    padded.check_features(spec, "store")
    assert CheckpointInfo.model_validate_json(padded.model_dump_json()) == padded
    # The version of an index without a network is a digest of this text, which must not change.
    assert "fit" not in info.model_dump_json()
