"""`vmr evaluate --report` on real files, with an index and the history of a real training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vmr_ray import cli
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.evaluation.metrics import moment_metrics
from vmr_ray.evaluation.qvhighlights import clip_scores, qvhighlights_metrics, saliency_metrics
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_network, save_checkpoint
from vmr_ray.model.inputs import Example
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import membership_curves


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
        evaluate(features, world.test, tmp_path / "other", index=index)


def test_a_checkpoint_without_its_run(trained, features: Path, world, tmp_path: Path):
    shutil.copytree(trained.best, tmp_path / "alone" / "best")
    evaluate(features, world.test, tmp_path / "alone" / "best", report=tmp_path / "report")
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["history"] is None and numbers["corpus"] is None
    assert "no history.json" in (tmp_path / "report" / "report.html").read_text()


def test_qvhighlights_is_measured_as_the_benchmark_does(
    trained, features: Path, world, tmp_path: Path, capsys, monkeypatch
):
    """From a file of that format to metrics.json, the table and the page; one query has no saliency."""
    videos = {video.video_id: video for video in FeatureStore.open(str(features))}
    queries = [json.loads(line) for line in world.test.read_text().splitlines()]
    rows, saliency = [], {}
    for qid, query in enumerate(queries):
        duration = videos[query["video"]].duration
        clips = int(duration / 2)
        rated = [c for c in range(clips) if c * 2 < query["end"] and c * 2 + 2 > query["start"]]
        row = {"qid": qid, "query": query["query"], "vid": query["video"], "duration": duration}
        row["relevant_windows"] = [[query["start"], query["end"]]]
        if qid and rated:
            row |= {"relevant_clip_ids": rated, "saliency_scores": [[4, 2, 3]] * len(rated)}
            saliency[query["video"], query["query"]] = np.zeros((clips, 3))
            saliency[query["video"], query["query"]][rated] = [4, 2, 3]
        rows.append(row)
    assert len(saliency) > 3
    file, out = tmp_path / "test.jsonl", tmp_path / "out"
    file.write_text("\n".join(map(json.dumps, rows)))

    flags = ["-a", file, "--checkpoint", trained.best, "--out", out, "--report", out]
    monkeypatch.setattr(sys, "argv", list(map(str, ["vmr", "evaluate", features, *flags])))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert "highlight HIT@1, very good" in printed and "mAP, short moments" in printed

    # The same numbers from the written answers and, for the highlights, from the network itself.
    table = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [row["video_id"] for row in table] == sorted(row["vid"] for row in rows)
    assert max(len(row["predicted"]) for row in table) > 5
    own = json.loads((out / "metrics.json").read_text())["qvhighlights"]
    truths = [row["truth"] for row in table]
    for name, column in (("model", "predicted"), ("shuffled", "shuffled")):
        spans = [np.reshape(row[column], (-1, 3))[:, :2] for row in table]
        expected = qvhighlights_metrics(spans, truths)
        assert {key: value for key, value in own[name].items() if key in expected} == pytest.approx(expected)
        top = moment_metrics(spans, truths)
        assert own[name]["r1_at_0.5"] == pytest.approx(top["r1_at_0.5"])
    assert set(own["constant"]) == set(qvhighlights_metrics(spans, truths))

    predictor = load_predictor(trained.best)
    scores, true = [], []
    for (video_id, query), rated in saliency.items():
        video = videos[video_id]
        tokens = list(predictor.text([query]))
        example = Example(video_id, video.duration, video.features, video.edges, [query], tokens, [[]])
        scores.append(clip_scores(membership_curves(predictor, example)[0], video.edges, len(rated)))
        true.append(rated)
    expected = saliency_metrics(scores, true)
    assert own["highlight_queries"] == len(saliency)
    assert {key: own["model"][key] for key in expected} == pytest.approx(expected)
    assert {key: own["shuffled"][key] for key in expected} != pytest.approx(expected)

    numbers = json.loads((out / "report.json").read_text())
    assert numbers["qvhighlights"] == own and numbers["measured"]["annotation_format"] == "qvhighlights"
    assert "highlight mAP, very good" in (out / "report.html").read_text()
