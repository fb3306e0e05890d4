"""The vector index of stage 1, on tables of its own: no Ray, no videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from vmr_ray.config import IndexConfig, ModelConfig
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.search.build import _optimize, _tables

DIM = 32
CONFIG = IndexConfig(ann_min_rows=1000, partition_rows=50)


def add(tables: dict, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Unit vectors around 40 centres, as segments are."""
    centres = np.random.default_rng(7).standard_normal((40, DIM))
    vectors = centres[rng.integers(40, size=rows)] + 0.5 * rng.standard_normal((rows, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    tables["segments"].add(
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


def names(tables: dict) -> list[str]:
    return [i.name for i in tables["segments"].list_indices() if i.columns == ["vector"]]


def test_the_index_grows_with_the_rows_and_finds_what_exact_search_finds(tmp_path: Path):
    info = CheckpointInfo(
        model=ModelConfig(dim=DIM, heads=2),
        frame_encoder="x",
        frame_dim=8,
        sampling="fps=1",
        text_encoder="y",
        token_dim=8,
    )
    tables, rng = _tables(str(tmp_path / "index"), info), np.random.default_rng(0)
    first = add(tables, rng, 900)
    _optimize(tables, CONFIG)
    assert names(tables) == []
    more = add(tables, rng, 1100)
    _optimize(tables, CONFIG)
    assert names(tables) == ["ivf_40"]
    last = add(tables, rng, 500)  # not enough for another index: they join this one
    _optimize(tables, CONFIG)
    assert names(tables) == ["ivf_40"]
    add(tables, rng, 2500)
    _optimize(tables, CONFIG)
    assert names(tables) == ["ivf_100"]
    assert tables["segments"].index_stats("ivf_100").num_unindexed_rows == 0

    shares = []
    for query in np.concatenate([first[:10], more[:10], last[:10]]):
        search = tables["segments"].search(query).distance_type("dot").select(["start"]).limit(20)
        exact = search.bypass_vector_index().with_row_id(True).to_arrow()["_rowid"].to_pylist()
        search = tables["segments"].search(query).distance_type("dot").select(["start"]).limit(20)
        found = search.nprobes(60).with_row_id(True).to_arrow()["_rowid"].to_pylist()
        shares.append(len(set(exact) & set(found)) / 20)
    assert np.mean(shares) > 0.95
