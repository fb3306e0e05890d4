"""Annotations + feature store -> training rows: Parquet, one row a video, written once by Ray Data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from vmr_ray.encoders import TextEncoder, text_encoder
from vmr_ray.evaluation.controls import fit_constants
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Annotation, Span
from vmr_ray.storage import exists, filesystem, join, naming_full_disk, write_bytes
from vmr_ray.training.batches import ROW_SCHEMA, clip, to_row

if TYPE_CHECKING:
    from ray.data import Dataset

T = TypeVar("T")
_READ_ROWS = 4  # read at once
_PREPARE_VIDEOS = 16  # prepared at once; so few need no Ray Data pipeline


@dataclass(frozen=True)
class Prepared:
    """Training rows in `path`, and what the caller needs to know without reading their features."""

    path: str
    durations: list[float]  # seconds, of every video
    spans: list[list[list[Span]]]  # of every query of every video
    size: int  # bytes of all files

    @property
    def videos(self) -> int:
        return len(self.durations)

    @property
    def queries(self) -> int:
        return sum(map(len, self.spans))

    def constants(self) -> dict[str, Any]:
        """The constant answers that fit the spans best; reports compare the network with them."""
        pairs = [
            (spans[0], duration)
            for duration, queries in zip(self.durations, self.spans, strict=True)
            for spans in queries
        ]
        return fit_constants([span for span, _ in pairs], [duration for _, duration in pairs])


def shuffled_ids(video_ids: Iterable[str], seed: int) -> list[str]:
    """Video ids in an order that depends on the seed and on each id, but not on which others there are."""
    return sorted(video_ids, key=lambda v: hashlib.sha256(f"{seed}:{v}".encode()).hexdigest())


def split(groups: dict[str, T], fraction: float, seed: int) -> tuple[dict[str, T], dict[str, T]]:
    """(training, validation) groups: a share of the videos, at least one, is held out to validate on.

    The same seed holds out the same videos. A single video is not split.
    """

    order = shuffled_ids(groups, seed)
    held_out = set(order[: max(1, round(fraction * len(order)))] if len(order) > 1 else [])
    return (
        {k: v for k, v in groups.items() if k not in held_out},
        {k: v for k, v in groups.items() if k in held_out},
    )


def prepare(
    out: str,
    store: FeatureStore,
    files: dict[str, tuple[str, ...]],
    groups: dict[str, list[Annotation]],
    text_name: str,
) -> Prepared:
    """Write the training rows of `groups` to the directory `out`; one with the same content is reused.

    Args:
        files: by video id, the files of its features in `store`.
        groups: by video id, its annotations.
        text_name: the text encoder that computes the queries' token states.
    """
    items = [
        {
            "files": list(files[video_id]),
            "queries": [a.query for a in rows],
            "spans": [[list(span) for span in a.spans] for a in rows],
        }
        for video_id, rows in sorted(groups.items())
    ]
    return write_rows(out, store, sorted(groups), items, _Prepare, text_name)


def write_rows(
    out: str,
    store: FeatureStore,
    video_ids: Sequence[str],
    items: Sequence[dict[str, Any]],
    maker: Callable[[str, str], Callable[[pa.Table], pa.Table]],
    argument: str,
) -> Prepared:
    """Write the training rows of the videos; a directory with the same content is reused.

    Args:
        items: of every video, the `files` of its features and whatever else the maker needs.
        maker: class whose objects turn a table of items into rows of ROW_SCHEMA. It is made in the workers,
            of the root of the store and of `argument`.
    """
    import ray

    from vmr_ray.cluster import autoscaling_pool

    # Versions instead of addresses, because `vmr features compact` moves chunks without changing them.
    versions = [{**item, "files": store.version(tuple(item["files"]))} for item in items]
    content = hashlib.sha256(json.dumps([list(video_ids), versions, argument]).encode()).hexdigest()
    filesys, path = filesystem(out)
    marker = f"_done-{content}"  # readers of Parquet skip names with a leading underscore
    if exists(join(out, marker)):
        return _measure(out)
    if filesys.get_file_info(path).type == fs.FileType.Directory:
        filesys.delete_dir(path)
    with naming_full_disk(path):
        if len(items) <= _PREPARE_VIDEOS:
            filesys.create_dir(path, recursive=True)
            rows = maker(store.root, argument)(pa.Table.from_pylist(items))
            pq.write_table(rows, f"{path}/rows.parquet", filesystem=filesys)
        else:
            ray.data.from_items(items, override_num_blocks=min(len(items), 64)).map_batches(
                maker,
                batch_size=_PREPARE_VIDEOS,
                batch_format="pyarrow",
                fn_constructor_args=(store.root, argument),
                compute=autoscaling_pool(math.ceil(len(items) / _PREPARE_VIDEOS)),
                num_cpus=1,
            ).write_parquet(out)
    write_bytes(join(out, marker), b"")
    return _measure(out)


def read_rows(prepared: Prepared, shuffled: bool = False) -> Dataset:
    """The rows as a Ray dataset, file by file; if `shuffled`, in another order every epoch.

    The tasks of `read_parquet` reserve CPUs. These reserve none, because the training processes may have
    reserved all of them.
    """
    import ray
    from ray.data import TaskPoolStrategy

    filesys, path = filesystem(prepared.path)
    names = (item.path for item in filesys.get_file_info(fs.FileSelector(path)))
    items = [{"root": prepared.path, "file": name} for name in sorted(names) if name.endswith(".parquet")]
    files = ray.data.from_items(items, override_num_blocks=len(items))
    if shuffled:
        files = files.randomize_block_order()
    return files.map_batches(
        _read_rows, batch_size=1, batch_format="pyarrow", num_cpus=0, compute=TaskPoolStrategy(size=4)
    )


def _read_rows(batch: pa.Table) -> Iterator[pa.Table]:
    for row in batch.to_pylist():
        filesys, _ = filesystem(row["root"])
        with filesys.open_input_file(row["file"]) as stream:
            for rows in pq.ParquetFile(stream).iter_batches(_READ_ROWS):
                yield pa.Table.from_batches([rows])


def _measure(path: str) -> Prepared:
    filesys, inner = filesystem(path)
    rows = pq.ParquetDataset(inner, filesystem=filesys).read(columns=["duration", "spans"])
    sizes = (item.size for item in filesys.get_file_info(fs.FileSelector(inner)))
    return Prepared(
        path, rows["duration"].to_pylist(), rows["spans"].to_pylist(), sum(size or 0 for size in sizes)
    )


class _Prepare:
    """(chunk files, queries, spans) -> training rows."""

    def __init__(self, root: str, text_name: str):
        self.store, self.text_name = FeatureStore.open(root), text_name

    @cached_property
    def text(self) -> TextEncoder:
        return text_encoder(self.text_name, threads=1)  # loaded at the first call, in the worker

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            video = self.store.read(row["files"])
            # There are no frames for a span beyond the video, or beyond its readable part.
            inside = [clip(spans, video.edges[0], video.edges[-1]) for spans in row["spans"]]
            keep = [i for i, spans in enumerate(inside) if spans]
            if keep:
                queries = [row["queries"][i] for i in keep]
                rows.append(to_row(video, queries, self.text(queries), [inside[i] for i in keep]))
        return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
