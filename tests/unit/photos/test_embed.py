"""The workers that embed photos and compose videos, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.pictures import COLOURS, jpeg, write_photos
from vmr_ray.config import EmbedConfig
from vmr_ray.encoders import frame_encoder
from vmr_ray.features import FeatureStore
from vmr_ray.photos.compose import frame_features, shots
from vmr_ray.photos.embed import EmbedPhotos, embedding_rows, photo_entry
from vmr_ray.photos.files import Photo, read_photos
from vmr_ray.photos.store import Compose, Composition, composition_rows, plan
from vmr_ray.photos.views import SAMPLING, VIEWS
from vmr_ray.schema import StoreSpec, Video


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photo]:
    """A photo a colour in files, one as bytes, and one that is damaged."""
    folder = write_photos(tmp_path_factory.mktemp("photos") / "photos", COLOURS[:8])
    (folder / "03.jpg").write_bytes(jpeg(COLOURS[3])[:200])
    read = read_photos(folder)
    return [*read[1:], Photo("memory", "in memory", read[0].image.read_bytes(), read[0].captions)]


@pytest.fixture(scope="module")
def views(photos: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    root = str(tmp_path_factory.mktemp("views"))
    store = FeatureStore.create(root, StoreSpec("efficientnet-lite0", 1280, SAMPLING))
    rows = embedding_rows([(photo_entry(photo), photo) for photo in photos])
    embedded = EmbedPhotos(EmbedConfig(), root, "cpu")(pa.Table.from_pylist(rows)).to_pylist()
    assert [row["photos"] for row in embedded] == [8]
    (failed,) = embedded[0]["failed"]
    assert failed["uri"].endswith("03.jpg") and "cannot be read as an image" in failed["error"]
    assert [record.error for record in store.quarantine.rows()] == [failed["error"]]
    return store


def test_the_features_are_those_of_the_photo(photos: list[Photo], views: FeatureStore):
    assert len(views.video_ids()) == 7
    encoder = frame_encoder("efficientnet-lite0")
    for photo in photos:
        if not photo.name.endswith("03.jpg"):
            stored = views.read(views.files()[photo_entry(photo).video_id]).features
            whole = encoder(np.asarray(photo.open().resize((224, 224), 3))[None])
            np.testing.assert_allclose(stored[0].astype(np.float32), whole[0], rtol=2e-3, atol=2e-3)
            assert stored.shape == (VIEWS, 1280)


def test_composed_videos_are_sampled_as_real_ones_are(
    photos: list[Photo], views: FeatureStore, tmp_path: Path
):
    embedded = set(views.video_ids())
    entries = {entry.video_id: entry for entry in map(photo_entry, photos) if entry.video_id in embedded}
    composition = Composition("train/000000", tuple(list(entries)[:5]), (0, 1, 2))
    rows = composition_rows([composition], views, entries)
    root = str(tmp_path / "moments")
    store = FeatureStore.create(root, StoreSpec("efficientnet-lite0", 1280, "fps=2"))
    Compose(views.root, root)(pa.Table.from_pylist(rows))
    (video,) = store
    script = shots(composition.photos, np.random.default_rng(composition.seed))
    assert video.video_id == "train/000000" and video.edges[-1] == video.duration == script[-1].end
    np.testing.assert_allclose(video.edges[1:-1], np.arange(len(video.times) - 1) / 2 + 0.25)
    stored = {photo: views.read(views.files()[photo]).features for photo in composition.photos}
    expected = frame_features(script, stored, video.times).astype(np.float16)
    np.testing.assert_array_equal(video.features, expected)
    assert store.finished([Video("train/000000", "", rows[0]["fingerprint"])])


def test_every_photo_is_asked_about_with_each_of_its_captions():
    captions = {f"p{i}": tuple(f"{letter} {i}" for letter in "abcde"[: 1 + i % 5]) for i in range(30)}
    videos, annotations = plan("train", captions, passes=2, seed=0)
    assert len(videos) == 10
    assert {a.query for a in annotations} >= {c for cs in list(captions.values())[:20] for c in cs[:1]}
    assert {a.video_id for a in annotations} == {video.video_id for video in videos}
    assert all(a.duration >= a.spans[-1][1] > a.spans[-1][0] >= 0 for a in annotations)
    assert plan("train", captions, 2, 0) == (videos, annotations)
    others, _ = plan("val", captions, 2, 0)
    assert [video.photos for video in others] != [video.photos for video in videos]
