"""The rows that a training process reads: streamed by Ray Data, and kept in memory if they fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.inputs import Example
from vmr_ray.training.batches import from_row
from vmr_ray.training.processes import gather_objects

_SHUFFLE_BYTES = 2**26  # streamed rows that are shuffled among each other


class CachedRows:
    """A process's share of the training or validation rows.

    Small sets are read once, before the first batch. A set larger than `cache_gb` is streamed again every
    epoch, its files in another order, and shuffled within a buffer of fixed memory, which holds the more rows
    the smaller `row_bytes` is.

    Args:
        shard: the process's shard of a Ray dataset with rows of ROW_SCHEMA.
        rows: how many it has, about.
        row_bytes: of one of them, about.
    """

    def __init__(
        self, shard: Any, info: CheckpointInfo, cache_gb: float, rows: int, row_bytes: int, world: int
    ):
        self.shard, self.info, self.world = shard, info, world
        self.max_bytes = cache_gb * 2**30
        self.read_first = rows * row_bytes <= self.max_bytes
        self.shuffle_rows = _SHUFFLE_BYTES // max(1, row_bytes)
        self.cached: list[Example] | None = None

    def batches(self, size: int, seed: int | None = None) -> Iterator[list[Example]]:
        """Batches of `size` videos, shuffled by `seed`, or in order without one."""
        if self.read_first:
            # So that no batch depends on the order of reading, not even those of the first epoch.
            self.read_first = False
            for _ in self._stream(size, None):
                pass
        if self.cached is None:
            yield from self._stream(size, seed)
            return
        numbers = np.arange(len(self.cached))
        order = numbers if seed is None else np.random.default_rng(seed).permutation(len(numbers))
        for at in range(0, len(order), size):
            yield _by_video_id(self.cached[i] for i in order[at : at + size])

    def _stream(self, size: int, seed: int | None) -> Iterator[list[Example]]:
        """As `batches`, out of the shard; fills the cache if all rows fit."""
        shuffle = (
            {}
            if seed is None
            else {"local_shuffle_buffer_size": max(size, self.shuffle_rows), "local_shuffle_seed": seed}
        )
        examples: list[Example] = []
        used_bytes = 0
        for table in self.shard.iter_batches(batch_size=size, batch_format="pyarrow", **shuffle):
            batch = [from_row(row, self.info.row_dim, self.info.token_dim) for row in table.to_pylist()]
            used_bytes += table.nbytes
            if used_bytes <= self.max_bytes:
                examples += batch
            else:
                examples.clear()
            yield _by_video_id(batch)
        # All processes or none: one that went on streaming alone would wait for the others for ever.
        if all(gather_objects(used_bytes <= self.max_bytes, self.world)):
            self.cached = _by_video_id(examples)


def _by_video_id(examples: Iterable[Example]) -> list[Example]:
    """Sorted, so that what is drawn for each video depends on the seed and not on the order of reading."""
    return sorted(examples, key=lambda example: example.video_id)
