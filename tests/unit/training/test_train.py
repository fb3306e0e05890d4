from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmr_ray.config import Config, TrainConfig
from vmr_ray.errors import VmrError
from vmr_ray.training.train import claim_run

INPUTS = {"features": "/features", "annotations": "a", "val": ""}


def test_the_same_run_is_claimed_again_with_more_epochs(tmp_path: Path):
    claim_run(str(tmp_path), Config(), INPUTS)
    written = (tmp_path / "run.json").read_bytes()
    claim_run(str(tmp_path), Config(train=TrainConfig(epochs=99, workers=2)), INPUTS)
    assert (tmp_path / "run.json").read_bytes() == written


def test_a_run_with_other_settings_or_inputs_is_refused(tmp_path: Path):
    claim_run(str(tmp_path), Config(), INPUTS)
    with pytest.raises(VmrError, match="holds a run with other train: choose another --out"):
        claim_run(str(tmp_path), Config(train=TrainConfig(lr=1.0)), INPUTS)
    with pytest.raises(VmrError, match="holds a run with other inputs: choose another --out"):
        claim_run(str(tmp_path), Config(), {**INPUTS, "val": "b"})


@pytest.mark.parametrize("content", [b"", b"\n", b'{"inputs": {', b"\xff\x00", b"[]", b"null", b"3"])
def test_a_damaged_run_json_is_one_sentence_with_the_fix(tmp_path: Path, content: bytes):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(VmrError, match=r"run\.json.*: choose another --out, or delete it") as caught:
        claim_run(str(tmp_path), Config(), INPUTS)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == content


def test_a_run_of_before_is_the_same_run(tmp_path: Path):
    """What `run.json` holds must not change: an interrupted run is resumed by a later version."""
    claim_run(str(tmp_path), Config(), INPUTS)
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored.keys() == {"inputs", "model", "train"} and stored["inputs"] == INPUTS
    free = {"epochs", "max_minutes", "patience", "track", "workers", "min_workers", "use_gpu"}
    assert not (free | {"cpus_per_worker"}) & stored["train"].keys()
    assert {"lr", "seed", "loss", "foreign_pairs"} < stored["train"].keys()
