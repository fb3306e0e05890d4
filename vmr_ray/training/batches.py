"""Training rows and the batches made of them. Pure numpy and torch: no Ray.

A training row is one video with all its queries, so that the network encodes the video once for all
of them. Arrays are stored as raw bytes, because Parquet and Arrow move bytes without conversion.
Shapes: see `vmr_ray/model/__init__.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vmr_ray.model.inputs import Example, pad
from vmr_ray.schema import Span, VideoFeatures

ROW_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("duration", pa.float64()),
        ("features", pa.large_binary()),  # float16 [T, frame_dim]
        ("edges", pa.list_(pa.float64())),  # [T + 1] seconds
        ("queries", pa.list_(pa.string())),
        ("tokens", pa.list_(pa.large_binary())),  # a query: float16 [L, token_dim]
        ("spans", pa.list_(pa.list_(pa.list_(pa.float64())))),  # a query: its true [start, end)s
    ]
)


def to_row(video: VideoFeatures, queries: list[str], tokens: list[np.ndarray], spans: Any) -> dict[str, Any]:
    """A row of ROW_SCHEMA; `tokens` [L, token_dim] and `spans` belong to the queries in order."""
    return {
        "video_id": video.video_id,
        "duration": video.duration,
        "features": np.ascontiguousarray(video.features, np.float16).tobytes(),
        "edges": video.edges.tolist(),
        "queries": queries,
        "tokens": [t.astype(np.float16).tobytes() for t in tokens],
        "spans": spans,
    }


def from_row(row: dict[str, Any], frame_dim: int, token_dim: int) -> Example:
    """The example in a row of ROW_SCHEMA."""
    return Example(
        row["video_id"],
        row["duration"],
        np.frombuffer(row["features"], np.float16).reshape(-1, frame_dim),  # [T, frame_dim]
        np.asarray(row["edges"], np.float64),
        list(row["queries"]),
        [np.frombuffer(t, np.float16).reshape(-1, token_dim) for t in row["tokens"]],  # [L, token_dim]
        [[(float(s), float(e)) for s, e in spans] for spans in row["spans"]],
    )


@dataclass
class Batch:
    """B videos of up to T frames, A queries of up to L tokens; masks are True where real."""

    features: Tensor  # [B, T, frame_dim]
    mask: Tensor  # [B, T]
    edges: Tensor  # [B, T + 1] seconds; the last edge repeats over the padding
    tokens: Tensor  # [A, L, token_dim]
    token_mask: Tensor  # [A, L]
    video: Tensor  # [A] row of each query's video
    text: Tensor  # [A] number of each query's text: equal numbers, equal texts
    text_key: Tensor  # [A] the same, comparable between processes
    spans: list[list[Span]]  # [A] true spans

    def to(self, device: torch.device | str) -> Batch:
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()
        }
        return Batch(**moved)


def collate(examples: Sequence[Example]) -> Batch:
    """B videos with all their queries as one batch."""
    features, mask = pad([e.features for e in examples])  # [B, T, frame_dim], [B, T]
    edges = torch.stack([_pad_edges(e.edges, mask.shape[1]) for e in examples])  # [B, T + 1]
    tokens, token_mask = pad([t for e in examples for t in e.tokens])  # [A, L, token_dim], [A, L]
    texts = [q for e in examples for q in e.queries]
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return Batch(
        features,
        mask,
        edges,
        tokens,
        token_mask,
        video=torch.tensor([row for row, e in enumerate(examples) for _ in e.queries]),
        text=torch.tensor([numbers[t] for t in texts]),
        text_key=torch.tensor([int.from_bytes(hashlib.sha256(t.encode()).digest()[:7]) for t in texts]),
        spans=[s for e in examples for s in e.spans],
    )


def _pad_edges(edges: np.ndarray, frames: int) -> Tensor:
    """[n + 1] -> float32 [frames + 1], the last edge repeated."""
    padded = np.full(frames + 1, edges[-1])
    padded[: len(edges)] = edges
    return torch.from_numpy(padded.astype(np.float32))


def crop(example: Example, window: int, rng: np.random.Generator) -> Example:
    """At most `window` frames of a video, cut around one of its moments drawn at random.

    A query stays if `clip` leaves one of its spans.
    """
    frames = len(example.features)
    if frames <= window:
        return example
    start, end = _draw(_draw(example.spans, rng), rng)
    centre = int(np.searchsorted(example.edges, (start + end) / 2, side="right")) - 1
    first = int(np.clip(centre - rng.integers(window), 0, frames - window))
    low, high = example.edges[first], example.edges[first + window]
    inside = [clip(spans, low, high) for spans in example.spans]
    keep = [i for i, spans in enumerate(inside) if spans]
    return Example(
        example.video_id,
        example.duration,
        example.features[first : first + window],
        example.edges[first : first + window + 1],
        [example.queries[i] for i in keep],
        [example.tokens[i] for i in keep],
        [inside[i] for i in keep],
    )


def clip(spans: Sequence[Sequence[float]], low: float, high: float) -> list[Span]:
    """The parts of spans inside `[low, high)`; a part stays if it is half of its span or of the interval."""
    clipped = [(max(s, low), min(e, high), e - s) for s, e in spans]
    # A little under a half, because `low` and `high` fall on whole frames.
    return [(s, e) for s, e, length in clipped if e - s >= 0.45 * min(length, high - low) > 0]


def _draw(items: Sequence[Any], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]
