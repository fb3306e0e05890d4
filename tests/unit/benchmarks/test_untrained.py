from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import untrained
from benchmarks.common.output import WIDTH
from vmr_ray.annotations import load_annotations
from vmr_ray.encoders.everyday import classifier
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Chunk, StoreSpec, Video


def test_words_are_found_in_features_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four videos of four shots of ten seconds: a frame is what speaks for a class of the classifier."""
    weights, _ = classifier()
    looks = np.maximum(weights - weights.mean(0), 0)
    words = {207: "a golden dog", 281: "a striped cat", 817: "a fast car", 963: "a pizza"}
    rows, videos = [], {}
    for number in range(4):
        order = np.roll(list(words), number)
        videos[f"{number}.mp4"] = looks[np.repeat(order, 10)].astype(np.float16)
        rows += [
            {"video": f"{number}.mp4", "query": words[c], "start": 10 * i, "end": 10 * i + 10}
            for i, c in enumerate(order)
        ]
    (tmp_path / "moments.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = FeatureStore.create(str(tmp_path / "features"), StoreSpec("efficientnet-lite0", 1280, "fps=1"))
    edges = np.arange(41.0)
    for name, features in videos.items():
        store.write_chunk(Video(name, name), Chunk(0, True, 40.0, edges[:-1] + 0.5, edges, ""), features)
    figures = untrained.measure(store, load_annotations(tmp_path / "moments.jsonl"))
    assert figures["similarity.r1_at_0.7"] == 100 == figures["similarity.r1_at_0.7_low"]
    assert figures["shuffled.r1_at_0.7"] < 50 and figures["constant.r1_at_0.7"] < 50
    assert figures["videos"] == 4 and figures["queries"] == 16
    untrained.show(figures)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH and "videos shuffled" in printed
    assert "trained on --photos" not in printed
    untrained.show(figures | {f"photos.{metric}": 50.0 for metric in untrained.METRICS})
    assert "trained on --photos" in capsys.readouterr().out

    (tmp_path / "one.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(VmrError, match="names 1 of the videos"):
        untrained.measure(FeatureStore.open(store.root), load_annotations(tmp_path / "one.jsonl"))


def test_the_interval_is_over_videos() -> None:
    """With all queries of a video alike, the interval is as wide as that of so few videos."""
    ious, videos = np.repeat([0.0, 1.0, 0.0, 1.0], 100), np.repeat(np.arange(4), 100)
    figures = untrained.bootstrap("row", ious, ious, videos)
    assert figures["row.r1_at_0.5_low"] == 0 and figures["row.r1_at_0.5_high"] == 100
    alone = untrained.bootstrap("row", ious, 1 - ious, np.arange(400))
    assert 40 < alone["row.miou_low"] < 50 < alone["row.miou_high"] < 60


def test_a_gain_is_of_the_same_videos() -> None:
    """Videos differ much, but the row is better by a tenth on each of them: there is no doubt of the gain."""
    baseline = np.linspace(0, 0.9, 40)
    figures = untrained.bootstrap("row", baseline + 0.1, baseline, np.arange(40))
    assert figures["row.gain_miou_low"] == pytest.approx(10) == figures["row.gain_miou_high"]
    assert figures["row.miou_high"] - figures["row.miou_low"] > 10
