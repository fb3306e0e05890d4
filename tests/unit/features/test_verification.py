"""Damage in a feature store is found, whichever byte it hits, and repaired."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.builders import SPEC, VIDEOS, store_content, write_features
from vmr_ray.features import DamagedError, FeatureStore, compact, verify
from vmr_ray.schema import Chunk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three videos of two, one and three chunks."""
    store = FeatureStore.create(str(tmp_path / "store"), SPEC)
    for video, sizes in zip(VIDEOS, ([3, 2], [4], [2, 2, 1]), strict=True):
        write_features(store, video, sizes)
    return tmp_path / "store"


def chunks(root: Path) -> list[Path]:
    """The files of the three-chunk video, in order."""
    return [Path(path) for path in FeatureStore.open(str(root)).files()["v/c.mp4"]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_whole_store(root: Path, packed: bool):
    if packed:
        compact(root)
    seen: list[tuple[int, int]] = []
    result = verify(root, progress=lambda done, total: seen.append((done, total)))
    assert (result.videos, result.chunks, result.frames, result.unfinished) == (3, 6, 14, 0)
    assert result.problems == [] and result.leftovers == []
    assert seen[-1] == (6, 6) and sorted(seen) == seen


def test_a_store_at_a_uri(root: Path):
    compact(root.as_uri())
    assert verify(root.as_uri()).videos == 3
    assert store_content(root.as_uri()) == store_content(root)


def check_flips(root: Path, path: Path, count: int) -> None:
    """Flip bytes all over a file, one at a time: it is reported, or it changes nothing."""
    before, good = store_content(root), path.read_bytes()
    random = np.random.default_rng(0)
    found = 0
    for position in np.linspace(0, len(good) - 1, count).astype(int):
        bad = bytearray(good)
        bad[position] ^= int(random.integers(1, 256))
        path.write_bytes(bad)
        try:
            read = store_content(root)
        except DamagedError as error:
            assert "is damaged (" in str(error) and "--repair" in str(error)
            read = {}
        assert all(before[name] == value for name, value in read.items()), position
        if read != before:
            found += 1
            assert verify(root).problems, position
    assert found > count / 4


def test_no_flipped_byte_goes_unseen(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path), SPEC)
    write_features(store, VIDEOS[0], [3])
    check_flips(tmp_path, next(tmp_path.rglob("*.parquet")), 300)


@pytest.mark.parametrize(("suffix", "count"), [("parquet", 120), ("json", 60)])
def test_no_flipped_byte_of_a_pack_goes_unseen(tmp_path: Path, suffix: str, count: int):
    store = FeatureStore.create(str(tmp_path), SPEC)
    write_features(store, VIDEOS[0], [2])
    write_features(store, VIDEOS[1], [1])
    compact(tmp_path)
    check_flips(tmp_path, next((tmp_path / "packs").glob(f"*.{suffix}")), count)


def test_pages_have_checksums(root: Path):
    """Found where the features are read, not by the digest of what was read."""
    path = chunks(root)[0]
    column = pq.read_metadata(path).row_group(0).column(9)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 255
    path.write_bytes(data)
    assert "CRC" in verify(root).problems[0].what


def test_a_chunk_rewritten_with_other_values_is_seen(root: Path):
    path = chunks(root)[0]
    table = pq.read_table(path)
    at = table.schema.get_field_index("times")
    pq.write_table(table.set_column(at, table.schema.field(at), [[[0.25, 1.25]]]), path)
    (problem,) = verify(root).problems
    assert (problem.where, problem.what) == (str(path), "its content is not what was written")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_repair_makes_a_damaged_video_unfinished(root: Path, damage: Callable[[Path], None]):
    before = store_content(root)
    damage(chunks(root)[1])
    (problem,) = verify(root).problems
    assert problem.fix == f"run `vmr features verify {root} --repair`, then `vmr embed` again"
    (problem,) = verify(root, repair=True).problems
    assert problem.fix == "deleted: run `vmr embed` again"
    result = verify(root)
    assert result.problems == [] and (result.videos, result.unfinished) == (2, 0)
    store = FeatureStore.open(str(root))
    assert store.finished(VIDEOS) == {"v/a.mp4", "v/b.mp4"}
    write_features(store, VIDEOS[2], [2, 2, 1])
    assert store_content(root) == before


def test_repair_of_a_pack(root: Path):
    before = store_content(root)
    compact(root)
    (pack,) = (root / "packs").glob("*.parquet")
    group = pq.read_metadata(pack).row_group(5)  # the last chunk of c
    data = bytearray(pack.read_bytes())
    data[group.column(9).data_page_offset + group.column(9).total_compressed_size - 2] ^= 255
    pack.write_bytes(data)
    with pytest.raises(DamagedError, match="--repair"):
        store_content(root)
    (problem,) = verify(root, repair=True).problems
    assert problem.where.startswith(f"{pack}#5/")
    store = FeatureStore.open(str(root))
    assert store.finished(VIDEOS) == {"v/a.mp4", "v/b.mp4"}
    write_features(store, VIDEOS[2], [2, 2, 1])
    assert store_content(root) == before
    compact(root)
    assert store_content(root) == before and verify(root).problems == []


def test_repair_of_the_json_of_a_pack(root: Path):
    compact(root)
    (listing,) = (root / "packs").glob("*.json")
    listing.write_text(listing.read_text()[:-3])
    with pytest.raises(DamagedError, match="the JSON of a pack"):
        store_content(root)
    (problem,) = verify(root, repair=True).problems
    assert problem.where == str(listing)
    assert verify(root).problems == [] and store_content(root) == {}
    compact(root)
    assert list((root / "packs").iterdir()) == []


def test_a_missing_chunk_makes_its_video_unfinished(root: Path):
    chunks(root)[1].unlink()
    result = verify(root)
    assert result.problems == [] and (result.videos, result.unfinished, result.chunks) == (2, 1, 5)


def test_a_missing_pack_is_seen(root: Path):
    compact(root)
    next((root / "packs").glob("*.parquet")).unlink()
    assert [p.what for p in verify(root, repair=True).problems] == ["it is missing"] * 3
    assert verify(root).problems == [] and FeatureStore.open(str(root)).finished(VIDEOS) == set()


def test_renamed_chunks_are_seen(root: Path):
    first, second, _ = chunks(root)
    second.rename(first)
    (problem,) = verify(root).problems
    assert problem.where == str(first) and "it holds chunk 1 of v/c.mp4 instead" in problem.what
    first.rename(first.with_name("mine.parquet"))
    (problem,) = verify(root, repair=True).problems
    assert "not that of a chunk" in problem.what and "move it" in problem.fix
    assert first.with_name("mine.parquet").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"edges": [2.0, 3.0]}, "2 times, 2 edges and 2 features do not fit"),
        ({"times": [2.5]}, "1 times, 3 edges and 2 features do not fit"),
        ({"edges": [2.0, 3.0, 3.0]}, "its edges do not increase"),
        ({"features": np.full((2, 4), np.inf)}, "a value is not finite"),
        ({"edges": [2.5, 3.0, 4.0]}, "it does not begin where the chunk before it ends"),
        ({"duration": 6.0}, "its duration differs from that of the chunk before it"),
    ],
)
def test_senseless_chunks_are_seen(root: Path, change: dict[str, object], expected: str):
    store = FeatureStore.open(str(root))
    chunk = Chunk(1, False, duration=5.0, times=[2.5, 3.5], edges=[2.0, 3.0, 4.0], damage="")
    store.write_chunk(VIDEOS[2], chunk, np.zeros((2, 4)))
    assert verify(root).problems == []
    features = change.pop("features", np.zeros((2, 4)))
    store.write_chunk(VIDEOS[2], replace(chunk, **change), features)
    assert [problem.what for problem in verify(root).problems] == [expected]


def test_leftovers_are_listed_and_deleted(root: Path):
    old, young = (root / "chunks" / f"x.parquet.{digit * 32}.part" for digit in "01")
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 4000,) * 2)
    (root / "packs").mkdir()
    (root / "packs" / "00001-0.parquet").write_bytes(b"never finished")
    result = verify(root)
    assert result.problems == []
    assert result.leftovers == [str(old), str(root / "packs" / "00001-0.parquet")]
    compact(root)
    assert young.exists() and verify(root).leftovers == []


def test_trouble_with_the_storage_is_no_damage(root: Path, monkeypatch: pytest.MonkeyPatch):
    class Offline:
        def __init__(self, inner: object):
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            if name == "open_input_file":
                raise OSError("the network is down")
            return getattr(self.inner, name)

    opened = FeatureStore.open(str(root))
    opened.folder.fs = Offline(opened.folder.fs)
    monkeypatch.setattr(FeatureStore, "open", lambda root: opened)
    with pytest.raises(OSError, match="the network is down"):
        verify(root, repair=True)
    monkeypatch.undo()
    assert verify(root).chunks == 6
