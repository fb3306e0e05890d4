from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders import SPEC, write_features
from vmr_ray.annotations.video_ids import resolve_ids
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Quarantined, StoreSpec, Video


def test_round_trip_joins_the_chunks(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path), SPEC)
    frames = write_features(store, Video("v/1.mp4", "/v/1.mp4", "a"), [3, 3, 1])
    (video,) = FeatureStore.open(str(tmp_path))
    assert video.video_id == "v/1.mp4" and video.duration == 7.0 and not video.partial
    np.testing.assert_array_equal(video.features, frames)
    np.testing.assert_array_equal(video.times, np.arange(7) + 0.5)
    np.testing.assert_array_equal(video.edges, np.arange(8.0))


def test_unfinished_videos_are_not_listed(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path), SPEC)
    whole, cut, gap = (Video(n, n, "a") for n in ("whole", "cut", "gap"))
    write_features(store, whole, [2, 2])
    write_features(store, cut, [2, 2], last=False)
    write_features(store, gap, [2, 2, 2])
    next(tmp_path.glob(f"chunks/*/{store.files()['gap'][1].rsplit('/')[-1]}")).unlink()
    assert store.video_ids() == ["whole"]
    assert store.finished([whole, cut, gap]) == {"whole"}


def test_a_changed_file_is_not_finished_until_embedded_again(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path), SPEC)
    old, new = Video("v", "v", "1"), Video("v", "v", "2")
    write_features(store, old, [2])
    assert store.finished([new]) == set()
    write_features(store, new, [3])
    store.delete_stale([new])
    assert store.finished([old]) == set() and store.finished([new]) == {"v"}
    (video,) = store
    assert len(video.features) == 3


def test_leftovers_of_other_chunk_sizes_do_no_harm(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path), SPEC)
    video = Video("v", "v", "1")
    write_features(store, video, [1, 1, 1, 1], last=False)
    store.discard_unfinished([video])
    write_features(store, video, [2, 2])
    store.discard_unfinished([video])
    assert store.finished([video]) == {"v"}


def test_same_input_gives_the_same_bytes(tmp_path: Path):
    stores = [FeatureStore.create(str(tmp_path / name), SPEC) for name in ("a", "b")]
    for store in stores:
        write_features(store, Video("v", "v", "1"), [2, 1])
    first, second = (
        {p.name: p.read_bytes() for p in sorted((tmp_path / name / "chunks").rglob("*.parquet"))}
        for name in ("a", "b")
    )
    assert first == second and len(first) == 2


def test_quarantine_is_kept_until_it_is_cleared(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path), SPEC)
    row = Quarantined("v", "/v", "open", "no frames", 2)
    store.quarantine.add(row)
    assert store.quarantine.rows() == [row]
    store.quarantine.clear(["other"])
    assert store.quarantine.rows() == [row]
    store.quarantine.clear(["v"])
    assert store.quarantine.rows() == []


def test_other_features_are_refused(tmp_path: Path):
    FeatureStore.create(str(tmp_path), SPEC)
    with pytest.raises(VmrError, match="holds features of some-encoder at fps=1"):
        FeatureStore.create(str(tmp_path), StoreSpec("some-encoder", 4, "fps=2"))


def test_features_of_another_fit_are_refused(tmp_path: Path):
    FeatureStore.create(str(tmp_path / "crop"), replace(SPEC, fit="crop"))
    assert FeatureStore.open(str(tmp_path / "crop")).spec.fit == "crop"
    with pytest.raises(VmrError, match=r"made square by crop, not by squash: .*embed\.fit=crop$"):
        FeatureStore.create(str(tmp_path / "crop"), SPEC)


def test_the_usual_fit_is_not_written(tmp_path: Path):
    """Earlier versions wrote none, and cannot read one."""
    FeatureStore.create(str(tmp_path), SPEC)
    assert json.loads((tmp_path / "store.json").read_text()).keys() == {
        "encoder",
        "dim",
        "sampling",
        "format",
    }
    assert FeatureStore.create(str(tmp_path), replace(SPEC, fit="squash")).spec == SPEC


def test_missing_and_damaged_stores_are_named(tmp_path: Path):
    with pytest.raises(VmrError, match="no feature store at"):
        FeatureStore.open(str(tmp_path))
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(VmrError, match="damaged"):
        FeatureStore.open(str(tmp_path))


def test_names_resolve_by_tail_and_without_suffix():
    ids = ["charades/Y1.mp4", "s1/f.mp4", "s2/f.mp4", "slides.mp4"]
    assert resolve_ids(["Y1", "data/charades/Y1.mp4", "s1/f", "videos/slides.mp4", "none"], ids) == {
        "Y1": "charades/Y1.mp4",
        "data/charades/Y1.mp4": "charades/Y1.mp4",
        "s1/f": "s1/f.mp4",
        "videos/slides.mp4": "slides.mp4",
    }


def test_a_name_never_finds_another_directory():
    assert resolve_ids(["s3/f.mp4"], ["s1/f.mp4"]) == {}


def test_ambiguous_names_are_refused():
    with pytest.raises(VmrError, match="fits several"):
        resolve_ids(["f.mp4"], ["s1/f.mp4", "s2/f.mp4"])


def test_names_of_another_system():
    ids = ["s1/Kitchen.MP4", "s2/hall.mp4"]
    assert resolve_ids(["C:\\v\\s1\\kitchen.mp4", "S2/HALL"], ids) == {
        "C:\\v\\s1\\kitchen.mp4": "s1/Kitchen.MP4",
        "S2/HALL": "s2/hall.mp4",
    }
    # The same letters come first.
    assert resolve_ids(["a.mp4"], ["a.mp4", "A.mp4"]) == {"a.mp4": "a.mp4"}
    with pytest.raises(VmrError, match="fits several"):
        resolve_ids(["kitchen"], ["Kitchen.mp4", "KITCHEN.mp4"])
