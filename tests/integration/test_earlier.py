"""What earlier versions wrote is still read: a feature store (loose and packed), a checkpoint, an index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vmr_ray import Searcher
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore, verify
from vmr_ray.model.checkpoint import load_network
from vmr_ray.search.build import build_index

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy: opening a table may write."""
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


@pytest.mark.parametrize("name", ["features", "packed_features"])
def test_a_feature_store_is_read(earlier: Path, name: str):
    store = FeatureStore.open(str(earlier / name))
    found = {
        video.video_id: {
            "frames": len(video.times),
            "duration": video.duration,
            "sum": float(video.features.astype(np.float64).sum()),
        }
        for video in store
    }
    assert found == EXPECTED["features"]
    assert [row.video_id for row in store.quarantine.rows()] == EXPECTED["quarantined"]
    assert not verify(earlier / name).problems


def test_a_checkpoint_is_read(earlier: Path):
    network, info = load_network(earlier / "checkpoint")
    assert info.version == EXPECTED["version"]
    assert not network.training


def test_an_index_answers_as_it_did(earlier: Path):
    searcher = Searcher(earlier / "index")
    found = searcher.search(EXPECTED["query"], 3).moments
    assert [[m.video_id, m.start, m.end] for m in found] == [m[:3] for m in EXPECTED["moments"]]
    assert [m.score for m in found] == pytest.approx([m[3] for m in EXPECTED["moments"]], abs=1e-3)
    videos = [{k: v for k, v in video.items() if k != "uri"} for video in searcher.videos()]
    assert videos == EXPECTED["videos"]


def test_an_index_takes_the_store_it_was_made_of(cluster, earlier: Path):
    made = build_index(earlier / "packed_features", earlier / "checkpoint", earlier / "index")
    assert (made.added, made.videos) == (0, len(EXPECTED["videos"]))


def test_a_checkpoint_is_evaluated(cluster, earlier: Path):
    rows = earlier / "test.jsonl"
    videos = [video["video_id"] for video in EXPECTED["videos"][:2]]  # two, so that they can be shuffled
    spans = {"query": EXPECTED["query"], "start": 1.0, "end": 3.0}
    rows.write_text("".join(json.dumps({"video": video, **spans}) + "\n" for video in videos))
    result = evaluate(earlier / "features", rows, earlier / "checkpoint")
    assert (result.queries, result.version) == (2, EXPECTED["version"])
