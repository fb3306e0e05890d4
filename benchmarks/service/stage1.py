"""Latency and recall of the first stage as the index grows, with exact search as the baseline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.common.output import Figures, print_table
from benchmarks.service.clients import Body
from vmr_ray.config import IndexConfig, SearchConfig
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables

BLOCK = 50_000  # segments that are in memory at one time
Vectors = NDArray[np.float32]  # [n, dim], of length 1


def stage1(index: Path, bodies: Sequence[Body], sizes: Sequence[int], folder: Path) -> Figures:
    """Ask the queries of tables of these sizes, mixed from the index's own segments; prints the table."""
    searcher = Searcher(index)
    texts = list(dict.fromkeys(body["query"] for body in bodies))[:200]
    predictor = searcher.predictor
    queries = predictor.encode_tokens(predictor.text(texts)).vectors.numpy().astype(np.float32)
    limit = SearchConfig().candidates
    figures: Figures = {}
    rows = []
    connection = lancedb.connect(str(folder / "stage1"))
    for size in sizes:
        mix = Mix(_vectors(searcher), size, seed=size)
        table = connection.create_table("segments", mix.reader(), mode="overwrite")
        began = time.monotonic()
        IndexTables.add_vector_index(table, IndexConfig())
        built = time.monotonic() - began
        for query in queries[:10]:
            find(table, query, limit)  # the first ones are slower
        exact = statistics.median(find(table, query, limit, exact=True)[0] for query in queries[:10])
        results = [find(table, query, limit) for query in queries]
        p50, p95 = np.percentile([ms for ms, _ in results], [50, 95])
        truth = mix.nearest(queries, limit)
        recall = statistics.mean(
            len(found & best) / len(best) for (_, found), best in zip(results, truth, strict=True)
        )
        rows.append(
            (f"{size:,}", f"{exact:.1f}", f"{p50:.1f}", f"{p95:.1f}", f"{recall:.3f}", f"{built:.0f}")
        )
        power = f"1e{round(np.log10(size))}"
        figures |= {
            f"stage1_exact_p50_ms_{power}": exact,
            f"stage1_p50_ms_{power}": float(p50),
            f"stage1_p95_ms_{power}": float(p95),
            f"stage1_recall_at_{limit}_{power}": recall,
        }
        figures[f"stage1_recall_at_{limit}"] = recall  # of the largest
    columns = ("segments", "exact p50 ms", "p50 ms", "p95 ms", f"recall@{limit}", "index built in s")
    print_table(f"the nearest {limit} segments, {len(queries)} queries", columns, rows)
    return figures


def find(table: Any, query: Vectors, limit: int, exact: bool = False) -> tuple[float, set[int]]:
    """Milliseconds of one search, and the segments that it found."""
    search = table.search(query).distance_type("dot")
    search = search.bypass_vector_index() if exact else search.nprobes(SearchConfig().partitions)
    began = time.perf_counter()
    found = search.select(["window_id", "_distance"]).limit(limit).to_arrow()
    ms = 1000 * (time.perf_counter() - began)
    return ms, {int(name) for name in found["window_id"].to_pylist()}


def _vectors(searcher: Searcher) -> Vectors:
    """The vectors of all segments of an index."""
    rows = searcher.tables.segments.search().select(["vector"]).limit(None).to_arrow()
    return np.stack(rows["vector"].to_pandas().to_numpy()).astype(np.float32)


@dataclass(frozen=True)
class Mix:
    """`size` segments between random pairs of real ones, with a little noise.

    They are made block by block, each time alike, so that a million of them never are in memory at once.
    """

    vectors: Vectors
    size: int
    seed: int

    def blocks(self) -> Iterator[tuple[int, Vectors]]:
        """The number of the first segment of a block, and the block."""
        random = np.random.default_rng(self.seed)
        for first in range(0, self.size, BLOCK):
            count = min(BLOCK, self.size - first)
            one, other = (self.vectors[random.integers(len(self.vectors), size=count)] for _ in range(2))
            share = random.uniform(0, 0.4, (count, 1)).astype(np.float32)
            mixed = one * (1 - share) + other * share
            mixed += 0.02 * random.standard_normal(mixed.shape, dtype=np.float32)
            yield first, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    def reader(self) -> pa.RecordBatchReader:
        """All segments as the rows of a table."""
        dim = self.vectors.shape[1]
        schema = pa.schema([("vector", pa.list_(pa.float32(), dim)), ("window_id", pa.string())])
        batches = (
            pa.record_batch(
                {
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim),
                    "window_id": [str(i) for i in range(first, first + len(block))],
                }
            )
            for first, block in self.blocks()
        )
        return pa.RecordBatchReader.from_batches(schema, batches)

    def nearest(self, queries: Vectors, limit: int) -> list[set[int]]:
        """The numbers of the segments that are truly nearest to each query."""
        scores = np.zeros((len(queries), 0), np.float32)
        numbers = np.zeros((len(queries), 0), int)
        for first, block in self.blocks():
            scores = np.concatenate([scores, queries @ block.T], axis=1)
            added = np.broadcast_to(np.arange(first, first + len(block)), (len(queries), len(block)))
            numbers = np.concatenate([numbers, added], axis=1)
            keep = np.argpartition(-scores, min(limit, scores.shape[1] - 1), axis=1)[:, :limit]
            scores, numbers = np.take_along_axis(scores, keep, 1), np.take_along_axis(numbers, keep, 1)
        return [set(row.tolist()) for row in numbers]
