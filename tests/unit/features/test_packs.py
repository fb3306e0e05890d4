"""Packs hold what the files held, even if writing them is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.builders import SPEC, VIDEOS, store_content, write_features
from vmr_ray.features import FeatureStore, compact, verify
from vmr_ray.schema import Chunk, Video

MORE = [Video(f"w/{name}.mp4", f"/w/{name}.mp4", "1") for name in "de"]


def fill(root: Path, *videos: Video, frames: int = 3) -> FeatureStore:
    store = FeatureStore.create(str(root), SPEC)
    for i, video in enumerate(videos):
        write_features(store, video, [frames] * (1 + i % 3))
    return store


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("uri", [False, True])
def test_a_pack_reads_like_its_files(tmp_path: Path, uri: bool):
    root = tmp_path / "a#b.parquet"
    store = fill(root, *VIDEOS)
    store.write_chunk(
        Video("é", "s3://b/é.mp4", "2"),
        Chunk(0, True, duration=2.2, times=[0.1, 1.1], edges=[0.1, 0.9, 2.3], damage="cut"),
        np.full((2, 4), -0.0),
    )
    write_features(store, MORE[0], [2, 2], last=False)
    before, was = store_content(root), store.files()
    result = compact(root.as_uri() if uri else root)
    # store.json, the unfinished video's two chunks, and a pack
    assert (result.files_before, result.files_after, result.videos) == (1 + 6 + 1 + 2, 1 + 2 + 2, 4)
    assert store_content(root) == before and result.bytes > 0
    (pack,) = (root / "packs").glob("*.parquet")
    now = FeatureStore.open(str(root)).files()
    assert list(now) == list(was)
    for video_id, addresses in now.items():
        assert all(address.startswith(f"{pack}#") for address in addresses)
        assert FeatureStore.version(addresses) == FeatureStore.version(was[video_id])
    assert store.finished([*VIDEOS, MORE[0]]) == {video.video_id for video in VIDEOS}


def test_a_second_compact_does_nothing(tmp_path: Path):
    fill(tmp_path, *VIDEOS)
    compact(tmp_path)
    before = {path: (tmp_path / path).stat() for path in files(tmp_path)}
    result = compact(tmp_path)
    assert (result.videos, result.bytes, result.files_before) == (0, 0, result.files_after)
    assert {path: (tmp_path / path).stat() for path in files(tmp_path)} == before


def test_packs_have_the_size_asked_for(tmp_path: Path):
    videos = [Video(f"{i}", f"{i}", "1") for i in range(10)]
    fill(tmp_path, *videos)
    before = store_content(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) / 2**20
    compact(tmp_path, target_mb=size / 3)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    compact(tmp_path, target_mb=size / 3)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    compact(tmp_path, target_mb=size * 3)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert store_content(tmp_path) == before and verify(tmp_path).problems == []


def test_the_same_chunks_make_the_same_packs(tmp_path: Path):
    roots = tmp_path / "a", tmp_path / "b"
    for root in roots:
        fill(root, *VIDEOS)
        compact(root)
        fill(root, *MORE)
        compact(root)
    first, second = ({p.name: p.read_bytes() for p in root.rglob("*.parquet")} for root in roots)
    assert first == second and len(first) == 1


def test_a_changed_video_is_replaced(tmp_path: Path):
    store = fill(tmp_path, *VIDEOS)
    compact(tmp_path)
    new = Video(VIDEOS[1].video_id, "/moved/b.mp4", "2")
    assert store.finished([new]) == set()
    write_features(store, new, [1, 1], last=False)
    assert store_content(tmp_path)["v/b.mp4"][0] == "/v/b.mp4"
    store.discard_unfinished([new])
    write_features(store, new, [5])
    assert store_content(tmp_path)["v/b.mp4"][0] == "/moved/b.mp4"
    compact(tmp_path)  # before `embed` has deleted the old version
    assert store_content(tmp_path)["v/b.mp4"][0] == "/moved/b.mp4"
    store.delete_stale([new])
    assert store.finished([VIDEOS[1]]) == set() and store.finished([new]) == {"v/b.mp4"}
    before = store_content(tmp_path)
    compact(tmp_path)
    (listing,) = (tmp_path / "packs").glob("*.json")
    assert len(json.loads(listing.read_text())["chunks"]) == 1 + 1 + 3
    assert store_content(tmp_path) == before and verify(tmp_path).problems == []


def test_an_old_version_that_is_packed_stays_old(tmp_path: Path):
    """The pack is the newest file, what it holds is not: an embed may end while packs are written."""
    store = fill(tmp_path, VIDEOS[0])
    (old,) = tmp_path.rglob("*.parquet")
    os.utime(old, (time.time() - 100,) * 2)
    compact(tmp_path)
    write_features(store, Video(VIDEOS[0].video_id, "/new", "2"), [1])
    (new,) = (tmp_path / "chunks").rglob("*.parquet")
    os.utime(new, (time.time() - 50,) * 2)
    assert store_content(tmp_path)["v/a.mp4"][0] == "/new"


def test_a_deleted_video_leaves_its_pack(tmp_path: Path):
    store = fill(tmp_path, *VIDEOS, *MORE)
    compact(tmp_path, target_mb=0.001)
    packs = files(tmp_path / "packs")
    before = store_content(tmp_path)
    for video in (*VIDEOS, *MORE):
        store.delete(video.video_id)
        del before[video.video_id]
        assert store_content(tmp_path) == before and verify(tmp_path).problems == []
    assert files(tmp_path / "packs") == packs
    compact(tmp_path)
    assert files(tmp_path) == ["store.json"]


class Killed(BaseException):
    pass


class Dying:
    """A file system whose n-th change, and every later one, fails."""

    def __init__(self, inner: object, left: int):
        self.inner, self.left = inner, left

    def __getattr__(self, name: str) -> object:
        if name in ("open_output_stream", "move", "delete_file"):
            self.left -= 1
            if self.left < 0:
                raise Killed
        return getattr(self.inner, name)


def embedded(root: Path) -> None:
    fill(root, *VIDEOS)


def grown(root: Path) -> None:
    """A small pack, more videos, one of them changed."""
    fill(root, *VIDEOS)
    compact(root)
    fill(root, *MORE)
    write_features(FeatureStore.open(str(root)), Video(VIDEOS[0].video_id, "/new", "2"), [2, 2])


def half_dead(root: Path) -> None:
    """A pack most of whose videos are deleted, one of them then embedded again unchanged."""
    store = fill(root, *VIDEOS, *MORE)
    compact(root)
    for video in VIDEOS:
        store.delete(video.video_id)
    fill(root, VIDEOS[0])


@pytest.mark.parametrize("made", [embedded, grown, half_dead])
@pytest.mark.parametrize("target_mb", [256, 0.006])
def test_a_kill_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[Path], None], target_mb: float
):
    made(tmp_path / "made")
    before = store_content(tmp_path / "made")
    steps = 0
    while True:
        root = tmp_path / str(steps)
        shutil.copytree(tmp_path / "made", root)  # with the times of the files
        opened = FeatureStore.open(str(root))
        opened.folder.fs = Dying(opened.folder.fs, steps)
        with monkeypatch.context() as patched:
            patched.setattr(FeatureStore, "open", lambda root, store=opened: store)
            try:
                compact(root, target_mb)
                break
            except Killed:
                pass
        assert store_content(root) == before
        assert verify(root).problems == []
        for part in root.rglob("*.part"):
            os.utime(part, (0, 0))
        compact(root, target_mb)
        assert store_content(root) == before
        result = verify(root)
        assert result.problems == [] and result.leftovers == [] and result.unfinished == 0
        compacted = compact(root, target_mb)
        assert compacted.bytes == 0 and compacted.files_before == compacted.files_after
        assert not list(root.rglob("*.part"))
        steps += 1
    assert steps >= 6


def test_embedding_goes_on_while_packs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A video that is deleted or added in the midst of `compact` is so afterwards."""
    store = fill(tmp_path, *VIDEOS)
    compact(tmp_path)
    fill(tmp_path, *MORE)
    changed = Video(VIDEOS[0].video_id, "/new", "2")

    def embed(done: int, total: int) -> None:
        if done == total:
            write_features(store, changed, [2])
            store.delete_stale([changed])

    compact(tmp_path, progress=embed)
    assert store_content(tmp_path)["v/a.mp4"][0] == "/new" and len(store_content(tmp_path)) == 5
    compact(tmp_path)
    assert store_content(tmp_path)["v/a.mp4"][0] == "/new" and len(store_content(tmp_path)) == 5
    assert store.finished([VIDEOS[0]]) == set() and verify(tmp_path).problems == []
