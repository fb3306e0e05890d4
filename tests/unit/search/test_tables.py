"""The tables of an index: no Ray, no videos."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import vmr_ray
from vmr_ray.config import IndexConfig
from vmr_ray.errors import VmrError
from vmr_ray.search.tables import (
    VIDEO_SCHEMA,
    WINDOW_SCHEMA,
    IndexTables,
    file_version,
    next_version,
    segment_schema,
    version_of,
    video_of,
    window_id,
)

DIM = 32
CONFIG = IndexConfig(ann_min_rows=1000, partition_rows=50)


def add_segments(tables: IndexTables, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Unit vectors around 40 centres, as segments are."""
    centres = np.random.default_rng(7).standard_normal((40, DIM))
    vectors = centres[rng.integers(40, size=rows)] + 0.5 * rng.standard_normal((rows, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    tables.segments.add(
        pa.table(
            {
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
                "video_id": ["a"] * rows,
                "window_id": ["w"] * rows,
                "tags": pa.array([[]] * rows, pa.list_(pa.string())),
                "start": np.arange(rows, dtype=float),
                "end": np.arange(rows, dtype=float) + 1,
            }
        )
    )
    return vectors


def vector_indexes(tables: IndexTables) -> list[str]:
    return [i.name for i in tables.segments.list_indices() if i.columns == ["vector"]]


def test_the_index_grows_with_the_rows_and_finds_what_exact_search_finds(tmp_path: Path):
    tables, rng = IndexTables.create(str(tmp_path / "index"), DIM), np.random.default_rng(0)
    first = add_segments(tables, rng, 900)
    tables.optimize(CONFIG)
    assert vector_indexes(tables) == []
    more = add_segments(tables, rng, 1100)
    tables.optimize(CONFIG)
    assert vector_indexes(tables) == ["ivf_40"]
    last = add_segments(tables, rng, 500)  # not enough for another index: they join this one
    tables.optimize(CONFIG)
    assert vector_indexes(tables) == ["ivf_40"]
    add_segments(tables, rng, 2500)
    tables.optimize(CONFIG)
    assert vector_indexes(tables) == ["ivf_100"]
    assert tables.segments.index_stats("ivf_100").num_unindexed_rows == 0

    shares = []
    for query in np.concatenate([first[:10], more[:10], last[:10]]):
        search = tables.segments.search(query).distance_type("dot").select(["start"]).limit(20)
        exact = search.bypass_vector_index().with_row_id(True).to_arrow()["_rowid"].to_pylist()
        search = tables.segments.search(query).distance_type("dot").select(["start"]).limit(20)
        found = search.nprobes(60).with_row_id(True).to_arrow()["_rowid"].to_pylist()
        shares.append(len(set(exact) & set(found)) / 20)
    assert np.mean(shares) > 0.95


@pytest.fixture
def tables(tmp_path: Path) -> IndexTables:
    """Two videos of one window and one segment each: `a` on the x axis, `it's b` on the y axis."""
    tables = IndexTables.create(str(tmp_path / "index"), 2)
    names = ["a", "it's b"]
    videos = [
        {"video_id": v, "uri": f"/v/{v}.mp4", "version": "1", "metadata": "{}", "duration": 9.0, "frames": 1}
        for v in names
    ]
    windows = [{"window_id": f"0:1:{v}", "video_id": v, "edges": [0.0, 9.0], "states": b""} for v in names]
    segments = [
        {"vector": vector, "video_id": v, "window_id": f"0:1:{v}", "tags": tags, "start": 0.0, "end": 9.0}
        for v, vector, tags in zip(names, [[1.0, 0.0], [0.0, 1.0]], [['c="x"'], ['c="it\'s"']], strict=True)
    ]
    tables.add(
        pa.Table.from_pylist(videos, VIDEO_SCHEMA),
        pa.Table.from_pylist(windows, WINDOW_SCHEMA),
        pa.Table.from_pylist(segments, segment_schema(2)),
    )
    return tables


def test_the_nearest_come_first_and_filters_hold(tables: IndexTables):
    query = np.array([1.0, 0.1])
    assert tables.nearest_windows(query, 10, 1) == ["0:1:a", "0:1:it's b"]
    assert tables.nearest_windows(query, 1, 1) == ["0:1:a"]
    assert tables.nearest_windows(query, 10, 1, video_ids=["it's b"]) == ["0:1:it's b"]
    assert tables.nearest_windows(query, 10, 1, filter={"c": "it's"}) == ["0:1:it's b"]
    assert tables.nearest_windows(query, 10, 1, filter={"c": ["y", "x"]}) == ["0:1:a"]
    assert tables.nearest_windows(query, 10, 1, ["a"], {"c": "it's"}) == []


def test_segments_are_read_up_to_a_limit(tables: IndexTables):
    rows = tables.read_segments(["a", "it's b", "none"], 2)
    assert rows is not None and sorted(rows.video_ids) == ["a", "it's b"] and rows.vectors.shape == (2, 2)
    assert tables.read_segments(["a", "it's b"], 1) is None
    empty = tables.read_segments(["none"], 1)
    assert empty is not None and len(empty.window_ids) == 0


def rows_left(tables: IndexTables) -> tuple[int, ...]:
    return tuple(table.count_rows() for table in (tables.videos, tables.windows, tables.segments))


def test_a_deleted_video_is_remembered_and_a_forgotten_one_is_not(tables: IndexTables):
    with pytest.raises(VmrError, match="'c' is not in the index"):
        tables.delete_videos(["a", "c"])
    assert rows_left(tables) == (2, 2, 2)
    tables.delete_videos(["it's b"])
    assert rows_left(tables) == (1, 1, 1) and tables.video_ids() == ["a"]
    assert tables.deleted_ids() == {"it's b"}
    tables.delete_videos(["it's b"])  # again
    assert rows_left(tables) == (1, 1, 1) and tables.deleted.count_rows() == 1
    tables.forget_videos(["a", "never there"])
    assert rows_left(tables) == (0, 0, 0) and tables.deleted_ids() == {"it's b"}
    tables.restore_videos(["a"])
    assert tables.deleted_ids() == {"it's b"}
    tables.restore_videos(["it's b"])
    assert tables.deleted_ids() == set()


def test_a_sweep_takes_what_belongs_to_no_video(tables: IndexTables):
    tables.sweep()
    assert rows_left(tables) == (2, 2, 2)
    tables.videos.update("video_id = 'a'", {"version": "2"})
    tables.sweep()
    assert rows_left(tables) == (2, 1, 1)
    tables.videos.delete("true")
    tables.sweep()
    assert rows_left(tables) == (0, 0, 0)


def test_optimizing_gives_way_to_other_writes(tables: IndexTables):
    class Busy:
        calls = 0

        def __getattr__(self, name: str) -> object:
            return getattr(tables.windows, name)

        def optimize(self) -> None:
            self.calls += 1
            raise RuntimeError("lance error: Retryable commit conflict for version 13: Please retry.")

    busy = Busy()
    IndexTables(tables.videos, busy, tables.segments, tables.deleted).optimize(CONFIG)
    assert busy.calls == 3


def test_versions_of_windows_and_videos():
    name = window_id(40, "1f.2", "cam:1/a.mp4")
    assert (video_of(name), version_of(name)) == ("cam:1/a.mp4", "1f.2:cam:1/a.mp4")
    assert file_version("1f.2") == file_version("1f") == "1f"
    assert [next_version("1f", v) for v in ("", "2e", "2e.1", "1f", "1f.1", "1f.19")] == (
        ["1f"] * 3 + ["1f.1", "1f.2", "1f.20"]
    )


def test_another_reader_sees_changes_at_once(tables: IndexTables, tmp_path: Path):
    reader = IndexTables.open(str(tmp_path / "index"))
    assert reader.has_video("a")
    tables.delete_videos(["a"])
    assert not reader.has_video("a") and reader.has_video("it's b")


def test_a_missing_index_is_named(tmp_path: Path):
    with pytest.raises(VmrError, match=r"no index at .*none: make one with `vmr index"):
        IndexTables.open(str(tmp_path / "none"))


def test_lancedb_is_called_nowhere_else():
    package = Path(vmr_ray.__file__).parent
    importing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "lancedb" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lancedb")
    ]
    assert set(importing) == {"search/tables.py"}
