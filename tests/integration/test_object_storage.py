"""The store and the videos in an S3 bucket: a server on loopback that speaks its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from tests import moto
from vmr_ray.config import EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore, compact, verify
from vmr_ray.storage import filesystem
from vmr_ray.video.local_copies import LocalCopies
from vmr_ray.video.sources import find_videos


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """`s3://...{}...` with a place for the path; the options make the URI reach the server."""
    with moto.server() as port:
        uri = f"s3://key:secret@archive{{}}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        root, _ = fs.FileSystem.from_uri(f"{uri.format('')}&allow_bucket_creation=true")
        root.create_dir("archive")
        yield uri


def upload(bucket: str, source: Path, name: str) -> None:
    target, path = filesystem(bucket.format(f"/{name}"))
    with target.open_output_stream(path) as stream:
        stream.write(source.read_bytes())


def test_from_bucket_to_bucket(cluster, world, features: Path, bucket: str) -> None:
    videos = sorted(world.videos.glob("*.mp4"))[:3]
    for video in videos:
        upload(bucket, video, f"videos/{video.name}")
    out = bucket.format("/features")
    summary = embed([bucket.format("/videos")], out, EmbedConfig(prefetch=2))
    assert (summary.embedded, summary.quarantined) == (3, [])
    assert embed([bucket.format("/videos")], out).skipped == 3
    here = {video.video_id: video.features for video in FeatureStore.open(str(features))}
    there = {video.video_id: video.features for video in FeatureStore.open(out)}
    assert {name: f.tobytes() for name, f in there.items()} == {
        v.name: here[v.name].tobytes() for v in videos
    }
    assert compact(out).videos == 3
    assert (verify(out).videos, verify(out).problems) == (3, [])
    upload(bucket, videos[1], f"videos/{videos[0].name}")
    assert embed([bucket.format("/videos")], out).embedded == 1
    there = {video.video_id: video.features for video in FeatureStore.open(out)}
    assert there[videos[0].name].tobytes() == here[videos[1].name].tobytes()


def test_copies_are_shared_and_bounded(world, bucket: str) -> None:
    for video in sorted(world.videos.glob("*.mp4"))[:3]:
        upload(bucket, video, f"few/{video.name}")
    one, two, three = find_videos([bucket.format("/few")])
    copies = LocalCopies(keep=2)
    with copies.local(one) as first, copies.local(one) as again:
        assert first == again and Path(first).read_bytes() == (world.videos / one.video_id).read_bytes()
        with copies.local(two) as second, copies.local(three) as third:
            assert len({first, second, third}) == 3 and Path(first).exists(), "in use, though two are kept"
    assert [Path(path).exists() for path in (first, second, third)] == [False, True, True]
    with copies.local(three) as kept:
        assert kept == third


def test_manifests_reach_only_their_roots(tmp_path: Path, bucket: str) -> None:
    manifest = tmp_path / "m.jsonl"
    uri = bucket.format("/few/x.mp4")
    manifest.write_text(f'{{"video_id": "x", "uri": "{uri}"}}\n')
    with pytest.raises(VmrError, match=r"m\.jsonl, line 1: .* embed\.storage_roots"):
        find_videos([manifest])
    root = bucket.format("/few")
    assert [video.video_id for video in find_videos([manifest], [root])] == ["x"]
    for escape in ("/few/../secret.mp4", "/fewer/x.mp4", "/few/%2e%2e/secret.mp4"):
        manifest.write_text(f'{{"video_id": "x", "uri": "{bucket.format(escape)}"}}\n')
        with pytest.raises(VmrError, match="storage_roots"):
            find_videos([manifest], [root])
    # Options choose the server, so a root allows only its own.
    manifest.write_text(f'{{"video_id": "x", "uri": "{uri}"}}\n')
    with pytest.raises(VmrError, match="storage_roots"):
        find_videos([manifest], [root.partition("?")[0]])
