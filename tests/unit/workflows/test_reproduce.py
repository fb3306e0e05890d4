from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vmr_ray.config import Config
from vmr_ray.errors import VmrError
from vmr_ray.workflows.reproduce import load_recipe, reproduce

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path):
    recipe = load_recipe(path)
    benchmark = recipe.benchmark
    assert isinstance(recipe, Config) and benchmark.annotations.train != benchmark.annotations.test
    # A longer video would be cut into windows, and a moment longer than a window could not be found.
    assert benchmark.max_clips is None or benchmark.max_clips <= recipe.model.window
    assert path.name in path.read_text(), "its comment names the command"
    known = set(yaml.safe_load(path.read_text()))
    assert known <= set(type(recipe).model_fields)


def test_there_are_recipes():
    assert {path.stem for path in CONFIGS} >= {
        "charades_sta_i3d",
        "activitynet_captions_c3d",
        "qvhighlights_clip_slowfast",
    }


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("benchmark: {nam: x}", [], "unknown key 'benchmark.nam'"),
        ("train: {}", [], "benchmark: Field required"),
        ("[", [], "not valid YAML"),
        ("", [], "benchmark: Field required"),
        (None, ["train.epoch=3"], "unknown key 'train.epoch'"),
        (None, ["benchmark.clip_seconds=long"], "benchmark.clip_seconds"),
        (None, ["benchmark.annotations.test"], "section.key=value"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str | None, overrides: list[str], message: str):
    path = tmp_path / "r.yaml"
    path.write_text(CONFIGS[0].read_text() if text is None else text)
    with pytest.raises(VmrError, match=message) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(VmrError, match="cannot read the config file"):
        load_recipe(tmp_path / "gone.yaml")
    recipe = load_recipe(next(path for path in CONFIGS if path.stem == "qvhighlights_clip_slowfast"))
    with pytest.raises(VmrError, match="no such file or directory"):
        reproduce(recipe, [tmp_path / "gone"], tmp_path, tmp_path / "out")
    with pytest.raises(VmrError, match="no clip_features in .* slowfast_features, clip_text_features"):
        reproduce(recipe, [tmp_path], tmp_path, tmp_path / "out")
    for name in ("clip_features", "slowfast_features", "clip_text_features"):
        (tmp_path / name).mkdir()
    with pytest.raises(VmrError, match=r"no highlight_train_release\.jsonl in"):
        reproduce(recipe, [tmp_path], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_may_be_given_itself(tmp_path: Path):
    recipe = load_recipe(next(path for path in CONFIGS if path.stem == "charades_sta_i3d"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(VmrError, match="no i3d_finetuned in"):
        reproduce(recipe, [tmp_path / "mine"], tmp_path, tmp_path / "out")
    (tmp_path / "mine" / "a.npy").touch()
    with pytest.raises(VmrError, match=r"no charades_sta_train\.txt in"):
        reproduce(recipe, [tmp_path / "mine"], tmp_path, tmp_path / "out")
    with pytest.raises(VmrError, match="no i3d_finetuned in"):
        reproduce(recipe, [tmp_path / "mine" / "a.npy"], tmp_path, tmp_path / "out")
