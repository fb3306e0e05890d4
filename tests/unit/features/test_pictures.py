"""Pictures of a video that has one key frame: a thumbnail costs no more than a limit, wherever it is."""

from __future__ import annotations

import asyncio
import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.videos import read_index, write_video
from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.stages import PART_SCHEMA, DecodeEncodeWrite
from vmr_ray.encoders import frame_spec
from vmr_ray.features import FeatureStore, verify
from vmr_ray.features.chunks import version_key, video_key
from vmr_ray.features.pictures import Pictures
from vmr_ray.schema import StoreSpec, Video
from vmr_ray.serve.media import KeptPictures, MediaWorkers, OpenedVideo
from vmr_ray.video.clips import FarError, clip, make_thumbnail
from vmr_ray.video.decode.picture import MAX_DECODED
from vmr_ray.video.sources import find_videos

FPS, SECONDS = 5, 600


def number_in(jpeg: bytes) -> int:
    return read_index(np.asarray(Image.open(io.BytesIO(jpeg))))


def embed(path: Path, root: Path) -> tuple[FeatureStore, Video]:
    config = EmbedConfig(decode=DecodeConfig(sampling="fps=0.25"))
    _, dim = frame_spec(config.encoder)
    store = FeatureStore.create(str(root), StoreSpec(config.encoder, dim, "fps=0.25"))
    (video,) = find_videos([path])
    row = pa.Table.from_pylist([asdict(video) | {"part": 0, "parts": 1}], schema=PART_SCHEMA)
    for _ in DecodeEncodeWrite(config, store.root)(row):
        pass
    return store, video


@pytest.fixture(scope="module", params=["a.mp4", "a.avi", "a.ts"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 minutes with one key frame."""
    path = tmp_path_factory.mktemp("recording") / request.param
    return write_video(path, seconds=SECONDS, fps=FPS, gop=10**6, b_frames=0)


def test_a_thumbnail_far_from_a_key_frame_is_the_nearest_picture(recording: Path, tmp_path: Path) -> None:
    store, video = embed(recording, tmp_path / "features")
    version = version_key(video.fingerprint)
    index = Pictures(str(tmp_path / "index"))
    index.copy(store.pictures, [f"{video_key(video.video_id)}-{version}"])
    kept = KeptPictures(str(tmp_path / "index"), video.video_id, version)

    async def thumbnails(seconds: list[int], pictures: KeptPictures | None) -> list[int]:
        workers = MediaWorkers()
        opened = [OpenedVideo.of(recording, recording.open("rb")) for _ in seconds]
        jpegs = [
            await workers.thumbnail(one, t, 320, pictures) for one, t in zip(opened, seconds, strict=True)
        ]
        return [number_in(jpeg) for jpeg in jpegs]

    near, far = MAX_DECODED // FPS - 20, [321, 401, 599]
    exact, *nearest = asyncio.run(thumbnails([near, *far], kept))
    assert exact == near * FPS
    for t, number in zip(far, nearest, strict=True):
        assert abs(number - t * FPS) < 4 * FPS and number % (4 * FPS) == 0
    # Without pictures, as in indexes of earlier versions, it is decoded.
    assert asyncio.run(thumbnails([200], KeptPictures(str(tmp_path), "a", "b"))) == [200 * FPS]
    small = kept.nearest(300, 32)
    assert small and Image.open(io.BytesIO(small)).width == 32


def test_the_limit_holds(recording: Path) -> None:
    assert number_in(make_thumbnail(str(recording), 100, 320, 100 * FPS + 2)) == 100 * FPS
    with pytest.raises(FarError):
        make_thumbnail(str(recording), 100, 320, 100 * FPS - 1)


def test_a_clip_far_from_a_key_frame(recording: Path, tmp_path: Path) -> None:
    clip(recording, 500, 501, tmp_path / "clip.mp4")
    assert number_in(make_thumbnail(str(tmp_path / "clip.mp4"), 0, 320)) == 500 * FPS


def test_pictures_are_deleted_with_their_video(tmp_path: Path) -> None:
    store = FeatureStore.create(str(tmp_path), StoreSpec("e", 4, "fps=1"))
    for video in ("a", "b"):
        for version in ("00000001", "00000002"):
            store.pictures.write(video, version, 0, [(1.0, b"one"), (5.0, b"two")])
    assert store.pictures.nearest("a", "00000001", 2.9) == b"one"
    assert store.pictures.nearest("a", "00000001", 3.1) == b"two"
    assert store.pictures.nearest("c", "00000001", 3.1) is None
    assert not verify(store.root).problems
    store.pictures.remove(["a"], but=["00000002"])
    store.delete("b")
    assert [*store.pictures.versions()] == [f"{video_key('a')}-00000002"]


def test_other_videos_have_none(tmp_path: Path) -> None:
    store, _ = embed(write_video(tmp_path / "a.mp4", seconds=130, fps=FPS, gop=50), tmp_path / "features")
    assert not store.pictures.versions()
