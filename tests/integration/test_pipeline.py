"""Every step on real H.264 files and a real Ray session."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tests.reported import KINDS
from vmr_ray import cli
from vmr_ray.embedding.embed import embed
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_network, save_checkpoint
from vmr_ray.schema import Spliced
from vmr_ray.search.build import build_index
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables
from vmr_ray.training.train import train
from vmr_ray.workflows.pipeline import load_plan, run_pipeline


def files_of(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (store / "chunks").rglob("*.parquet")}


def remux_index_first(source: Path, target: Path) -> None:
    """Copy the stream into an MP4 whose index comes first, so that a cut loses pictures only."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def test_features_cover_the_videos(features: Path, world):
    durations = {r["video"]: r["duration"] for r in map(json.loads, world.train.read_text().splitlines())}
    store = FeatureStore.open(str(features))
    assert len(store.video_ids()) == 9
    for video in store:
        assert video.features.shape == (len(video.times), 1280)
        assert np.isfinite(video.features).all() and video.features.std() > 0
        assert video.edges[0] == 0 and video.edges[-1] == pytest.approx(video.duration)
        assert video.duration == pytest.approx(durations.get(video.video_id, video.duration), abs=0.2)
        assert ((video.edges[:-1] <= video.times) & (video.times < video.edges[1:])).all()


def test_embed_adds_only_what_is_new(cluster, world, tmp_path: Path):
    videos, out = tmp_path / "videos", tmp_path / "features"
    videos.mkdir()
    names = sorted(p.name for p in world.videos.glob("*.mp4"))[:3]
    shutil.copy2(world.videos / names[0], videos)
    assert embed([videos], out).embedded == 1
    (videos / "bad.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 500)
    (videos / "fake.mkv").write_text("#EXTM3U\nhttp://127.0.0.1/x\n")
    shutil.copy2(world.videos / names[1], videos)
    calls = []
    second = embed([videos], out, progress=calls.append)
    assert (second.videos, second.embedded, second.skipped) == (4, 1, 1)
    assert {row.video_id: row.stage for row in second.quarantined}["fake.mkv"] == "sniff"
    assert {row.video_id for row in second.quarantined} == {"bad.mp4", "fake.mkv"}
    assert all(row.error and "\n" not in row.error for row in second.quarantined)
    assert (calls[0].videos, calls[0].done, calls[0].seconds_left) == (4, 1, None)
    assert (calls[-1].done, calls[-1].failed, calls[-1].seconds_left) == (2, 2, 0)
    assert {row.video_id for row in FeatureStore.open(str(out)).quarantine.rows()} == {"bad.mp4", "fake.mkv"}
    # A repaired file leaves quarantine; a changed one is embedded again.
    shutil.copy2(world.videos / names[2], videos / "bad.mp4")
    (videos / "fake.mkv").unlink()
    shutil.copyfile(world.videos / names[2], videos / names[0])
    third = embed([videos], out)
    assert (third.embedded, third.skipped, third.quarantined) == (2, 1, [])
    store = FeatureStore.open(str(out))
    assert "bad.mp4" not in {row.video_id for row in store.quarantine.rows()}
    by_id = {video.video_id: video for video in store}
    np.testing.assert_array_equal(by_id["bad.mp4"].features, by_id[names[0]].features)


def test_same_videos_give_the_same_bytes(features: Path, world, tmp_path: Path):
    one = next(iter(sorted(world.videos.glob("*.mp4"))))
    embed([one], tmp_path)
    again = files_of(tmp_path)
    assert again and again.items() <= files_of(features).items()


def test_a_cut_file_gives_its_readable_frames(cluster, world, features: Path, tmp_path: Path):
    one = next(iter(sorted(world.videos.glob("*.mp4"))))
    remux_index_first(one, tmp_path / "cut.mp4")
    data = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    spliced = KINDS["clock_jumps.ts"](tmp_path / "spliced.ts")
    summary = embed([tmp_path / "cut.mp4", spliced], tmp_path / "out")
    assert (summary.embedded, summary.quarantined) == (2, [])
    assert summary.spliced == [Spliced("spliced.ts", [2.0])]
    (partial,) = summary.partial
    assert partial.video_id == "cut.mp4" and "frames that it declares" in partial.damage
    video, whole_stream = FeatureStore.open(str(tmp_path / "out"))
    assert whole_stream.video_id == "spliced.ts" and not whole_stream.partial
    (whole,) = (v for v in FeatureStore.open(str(features)) if v.video_id == one.name)
    assert video.partial and 1 < len(video.features) < len(whole.features)
    np.testing.assert_array_equal(video.features[:-1], whole.features[: len(video.features) - 1])


def test_manifest_and_uri_inputs(features: Path, world, tmp_path: Path):
    one = next(iter(sorted(world.videos.glob("*.mp4"))))
    manifest = tmp_path / "m.jsonl"
    rows = [{"video_id": "mine", "uri": one.as_uri()}, {"video_id": "gone", "uri": "none.mp4"}]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    summary = embed([manifest], tmp_path / "out")
    assert summary.embedded == 1 and [row.video_id for row in summary.quarantined] == ["gone"]
    (video,) = FeatureStore.open(str(tmp_path / "out"))
    (same,) = (v for v in FeatureStore.open(str(features)) if v.video_id == one.name)
    np.testing.assert_array_equal(video.features, same.features)


def test_training_leaves_checkpoints_that_load(trained):
    for path in (trained.best, trained.last):
        network, info = load_network(path)
        assert info.frame_encoder == "efficientnet-lite0" and info.text_encoder == "minilm"
        assert info.metrics["epoch"] in (1, 2)
        assert sum(p.numel() for p in network.parameters()) > 1000
    assert [row["epoch"] for row in trained.history] == [1, 2]
    assert load_network(trained.best)[1].metrics["miou"] == max(row["miou"] for row in trained.history)
    assert not list(Path(trained.best).parent.rglob("*.pkl")) + list(Path(trained.best).parent.rglob("*.pt"))


def test_a_finished_run_is_not_trained_again(trained, features: Path, world, small):
    seen = []
    again = train(features, world.train, Path(trained.best).parent, small, report=seen.append)
    assert again.history == trained.history and seen == []


def test_evaluation_carries_its_controls(trained, features: Path, world, tmp_path: Path):
    found = evaluate(features, world.test, trained.best, tmp_path)
    names = {f"r{k}_at_{t}" for k in (1, 5) for t in (0.3, 0.5, 0.7)} | {"miou"}
    for metrics in (found.model, found.constant, found.shuffled):
        assert set(metrics) == names
        assert all(0 <= value <= 100 for value in metrics.values())
    assert found.model != found.shuffled
    assert found.queries == len(world.test.read_text().splitlines()) and found.videos == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] == found.model
    assert (tmp_path / "predictions.parquet").exists()


def test_search_over_one_and_all(index: Path, world):
    searcher = Searcher(index)
    videos = [row["video_id"] for row in searcher.videos()]
    assert len(videos) == 9
    result = searcher.search("the red ball spins", top_k=100)
    assert len({m.video_id for m in result.moments}) > 1
    scores = [m.score for m in result.moments]
    assert scores == sorted(scores, reverse=True)
    for moment in result.moments:
        assert 0 <= moment.start < moment.end
    only = searcher.search("the red ball spins", video_ids=[videos[0]])
    assert {m.video_id for m in only.moments} == {videos[0]}
    expected = [
        m for m in searcher.search("the red ball spins", top_k=100).moments if m.video_id == videos[0]
    ]
    assert only.moments[0].start == expected[0].start
    assert only.moments[0].score == pytest.approx(expected[0].score, abs=1e-3)


def test_search_agrees_with_evaluation(index: Path, trained, features: Path, world, tmp_path: Path):
    """One implementation behind both: the same spans for the same query and video."""
    import pyarrow.parquet as pq

    evaluate(features, world.test, trained.best, tmp_path)
    searcher = Searcher(index)
    for row in pq.read_table(tmp_path / "predictions.parquet").slice(0, 3).to_pylist():
        best = searcher.search(row["query"], 1, [row["video_id"]]).moments[0]
        assert (best.start, best.end) == pytest.approx(tuple(row["predicted"][0][:2]))


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("  ", {}, "query is empty"),
        ("x" * 10_000_000, {}, "at most 1000"),
        ("ok", {"top_k": 0}, "top_k is 0"),
        ("ok", {"video_ids": ["it's not there"]}, '"it\'s not there" is not in the index'),
    ],
)
def test_bad_queries_are_named(index: Path, query: str, options: dict, message: str):
    with pytest.raises(VmrError, match=message):
        Searcher(index).search(query, **options)


def test_index_adds_only_what_is_new(trained, features: Path, world, tmp_path: Path):
    store = tmp_path / "features"
    shutil.copytree(features, store)
    hidden = sorted((store / "chunks").rglob("*.parquet"))[0]
    aside = hidden.rename(tmp_path / hidden.name)
    first = build_index(store, trained.best, tmp_path / "index")
    assert (first.added, first.videos) == (8, 8)
    aside.rename(hidden)
    second = build_index(store, trained.best, tmp_path / "index")
    assert (second.added, second.videos) == (1, 9)
    assert build_index(store, trained.best, tmp_path / "index").added == 0


def test_a_changed_video_is_indexed_again(trained, features: Path, world, cluster, tmp_path: Path):
    videos, store, out = (tmp_path / name for name in ("videos", "features", "index"))
    videos.mkdir()
    first, second = sorted(world.videos.glob("*.mp4"))[:2]
    shutil.copyfile(first, videos / "a.mp4")
    embed([videos], store)
    build_index(store, trained.best, out)
    shutil.copyfile(second, videos / "a.mp4")
    embed([videos], store)
    assert build_index(store, trained.best, out).added == 1
    (row,) = Searcher(out).videos()
    (video,) = FeatureStore.open(str(store))
    assert row["duration"] == video.duration and row["frames"] == len(video.features)
    assert build_index(store, trained.best, out).added == 0


def test_an_interrupted_index_is_completed(trained, features: Path, index: Path, tmp_path: Path):
    """Killed while it copied the checkpoint, and while it stored the rows of two videos."""
    weights = (Path(trained.best) / "model.safetensors").read_bytes()
    out = tmp_path / "index"
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(VmrError, match="no index at"):
        Searcher(out)
    whole = Searcher(index).search("the red ball spins", top_k=100).moments
    assert build_index(features, trained.best, out).added == 9
    assert Searcher(out).search("the red ball spins", top_k=100).moments == whole

    tables = IndexTables.open(str(out))
    first, second = sorted(tables.video_ids())[:2]
    tables.videos.delete(f"video_id = '{first}'")
    for table in (tables.videos, tables.segments):
        table.delete(f"video_id = '{second}'")
    assert build_index(features, trained.best, out).added == 2
    assert Searcher(out).search("the red ball spins", top_k=100).moments == whole
    assert tables.windows.count_rows() == IndexTables.open(str(index)).windows.count_rows()


def test_index_of_another_checkpoint_is_refused(index: Path, features: Path, trained, tmp_path: Path):
    other = tmp_path / "checkpoint"
    shutil.copytree(trained.best, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    with pytest.raises(VmrError, match="truncated or altered"):
        build_index(features, other, tmp_path / "index")
    weights = {name: tensor + 1 for name, tensor in load_network(trained.best)[0].state_dict().items()}
    save_checkpoint(tmp_path / "retrained", weights, load_network(trained.best)[1])
    with pytest.raises(VmrError, match="another checkpoint"):
        build_index(features, tmp_path / "retrained", index)


def test_the_pipeline_does_what_has_changed(cluster, world, tmp_path: Path, monkeypatch, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(world.videos, videos)
    (videos / "notes.txt").write_text("milk")
    removed = videos / "removed.mp4"
    shutil.copyfile(min(world.videos.glob("*.mp4")), removed)
    settings = {
        "pipeline.videos": [str(videos)],
        "pipeline.annotations": str(world.train),
        "pipeline.test": str(world.test),
        "pipeline.out": str(tmp_path / "out"),
        "model.dim": 32,
        "model.heads": 2,
        "train.epochs": 2,
        "train.cpus_per_worker": 0.5,
    }

    def statuses(**changed: object) -> dict[str, str]:
        overrides = settings | {key.replace("__", "."): value for key, value in changed.items()}
        outcome = run_pipeline(load_plan(None, [f"{k}={json.dumps(v)}" for k, v in overrides.items()]))
        assert outcome.exit_code == 0, outcome
        assert len(Searcher(outcome.index).videos()) == len(list(videos.glob("*.mp4")))
        return {name: step.status for name, step in outcome.steps.items()}

    assert set(statuses().values()) == {"done"}
    assert set(statuses().values()) == {"skipped"}
    removed.unlink()
    again = {"embed": "done", "train": "skipped", "evaluate": "done", "index": "done"}
    assert statuses(evaluate__nms=0.4) == again

    plan = tmp_path / "plan.yaml"
    plan.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in nested(settings).items()))
    monkeypatch.setattr(sys, "argv", ["vmr", "pipeline", "--config", str(plan), "--set", "evaluate.nms=0.4"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "left out not the name of a video: notes.txt\n" in capsys.readouterr().err


def nested(settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """`section.key` -> value, as sections of a config file."""
    sections: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections
