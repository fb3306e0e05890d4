from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.builders import SPEC, VIDEOS, write_features
from vmr_ray.features import FeatureStore
from vmr_ray.search.tables import VIDEO_SCHEMA, IndexTables
from vmr_ray.workflows.forget import forget_unlisted

A, B, C = (video.video_id for video in VIDEOS)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store of a, b and c, next to an index of them, of an upload, and of a video without features."""
    store = FeatureStore.create(str(tmp_path / "features-1"), SPEC)
    for video in VIDEOS:
        write_features(store, video, [3])
    uris = {video.video_id: video.uri for video in VIDEOS} | {"upload": "/up/u.mp4", "old": "/v/old.mp4"}
    for name in ("index-1", "index-2"):
        tables = IndexTables.create(str(tmp_path / name), 4)
        tables.videos.add(
            pa.Table.from_pylist([{"video_id": v, "uri": uri} for v, uri in uris.items()], VIDEO_SCHEMA)
        )
    return store


def indexed(tmp_path: Path) -> list[set[str]]:
    return [set(IndexTables.open(str(tmp_path / name)).video_ids()) for name in ("index-1", "index-2")]


def test_without_a_rule_only_videos_with_features_go(store: FeatureStore, tmp_path: Path):
    assert forget_unlisted(store, str(tmp_path), {A, B, C}) == 0
    assert forget_unlisted(store, str(tmp_path), {A, "new"}) == 2
    assert store.video_ids() == [A]
    assert indexed(tmp_path) == [{A, "upload", "old"}] * 2
    assert forget_unlisted(store, str(tmp_path), {A}) == 0


@pytest.mark.parametrize("left", ["checkpoint", "videos.lance"])
def test_an_index_without_tables_is_passed_over(store: FeatureStore, tmp_path: Path, left: str):
    """`left`: what an interrupted call had created, before the tables."""
    (tmp_path / "index-interrupted" / left).mkdir(parents=True)
    assert forget_unlisted(store, str(tmp_path), {A}, lambda uri: False) == 2
    assert indexed(tmp_path) == [{A, "upload", "old"}] * 2


def test_the_rule_names_others_by_their_uri(store: FeatureStore, tmp_path: Path):
    below = lambda uri: uri.startswith("/v/")  # noqa: E731
    tables = IndexTables.open(str(tmp_path / "index-1"))
    tables.delete_videos([A, C, "upload"])
    assert forget_unlisted(store, str(tmp_path), {A, B, C}, below) == 1
    assert tables.deleted_ids() == {A, C, "upload"}
    assert forget_unlisted(store, str(tmp_path), {A, B}, below) == 1
    assert store.video_ids() == [A, B]
    assert indexed(tmp_path) == [{B}, {A, B, "upload"}]
    assert tables.deleted_ids() == {A, "upload"}, "the file of c may come back"
