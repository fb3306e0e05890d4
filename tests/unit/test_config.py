from __future__ import annotations

from pathlib import Path

import pytest

from vmr_ray.config import load_config
from vmr_ray.errors import VmrError


def test_defaults_need_no_file():
    assert load_config().embed.decode.sampling == "fps=1"


def test_file_then_overrides(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 7, lr: 0.1}\nembed: {decode: {sampling: every=5}}\n")
    config = load_config(path, ["train.lr=1e-3", "model.dim=64"])
    assert (config.train.epochs, config.train.lr, config.model.dim) == (7, 0.001, 64)
    assert config.embed.decode.sampling == "every=5"


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("trian: {}", [], "unknown key 'trian'"),
        ("train: {epoch: 3}", [], "unknown key 'train.epoch'"),
        ("embed: {decode: {fps: 2}}", [], "known here: sampling"),
        ("train: {epochs: 0}", [], "train.epochs"),
        ("model: {dim: 30, heads: 4}", [], "heads must divide dim"),
        ("embed: {decode: {sampling: often}}", [], "embed.decode.sampling"),
        ("- a list", [], "expected sections"),
        ("train: [", [], "not valid YAML"),
        ("", ["train.epochs"], "section.key=value"),
        ("", ["train.nope=1"], "unknown key 'train.nope'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], told: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(VmrError, match=told) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(VmrError, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
