"""`vmr evaluate --report` on real files, with an index and the history of a real training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from vmr_ray import cli
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_network, save_checkpoint


def test_a_report_of_a_trained_model(
    trained, features: Path, index: Path, world, tmp_path: Path, monkeypatch
):
    out, checkpoint = tmp_path / "report", Path(trained.best)
    flags = ["--checkpoint", checkpoint, "--report", out, "--index", index, "--max-queries", 4]
    monkeypatch.setattr(sys, "argv", list(map(str, ["vmr", "evaluate", features, "-a", world.test, *flags])))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code

    numbers = json.loads((out / "report.json").read_text())
    measured = numbers["measured"]
    asked = len(world.test.read_text().splitlines())
    assert (measured["queries"], measured["videos"]) == (asked, 3)
    assert measured["version"] == load_network(checkpoint)[1].version
    assert "vmr evaluate" in measured["command"] and str(world.test) in measured["command"]
    assert sum(row["queries"] for row in numbers["by_length"]) == asked
    assert numbers["history"] == trained.history

    corpus = numbers["corpus"]
    assert (corpus["queries"], corpus["annotated"], corpus["videos"]) == (4, asked, 9)
    assert corpus["metrics"]["corpus_r1_at_0.5"] <= corpus["metrics"]["corpus_r100_at_0.5"]
    assert corpus["metrics"]["corpus_r100_at_0.5"] <= corpus["candidate_recall"] <= 100

    store = FeatureStore.open(str(features))
    frames = {video.video_id: len(video.features) for video in store}
    for case in numbers["cases"]:
        assert len(case["membership"]) == frames[case["video_id"]] == len(case["edges"]) - 1
        assert all(0 <= value <= 1 for value in case["membership"])
    page = (out / "report.html").read_text()
    assert "Curves of the loss" in page and "Not measured" not in page
    assert (out / "losses.png").exists() and (out / "recall-dark.png").exists()


def test_an_index_of_another_checkpoint_is_refused(
    trained, features: Path, index: Path, world, tmp_path: Path
):
    network, info = load_network(trained.best)
    other = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    save_checkpoint(tmp_path / "other", other, info)
    with pytest.raises(VmrError, match="another checkpoint"):
        evaluate(tmp_path / "other", features, world.test, index=index)


def test_a_checkpoint_without_its_run(trained, features: Path, world, tmp_path: Path):
    shutil.copytree(trained.best, tmp_path / "alone" / "best")
    evaluate(tmp_path / "alone" / "best", features, world.test, report=tmp_path / "report")
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["history"] is None and numbers["corpus"] is None
    assert "no history.json" in (tmp_path / "report" / "report.html").read_text()
