"""The records that travel, their units and their Arrow schemas.

Times are float seconds from the beginning of the video's file, as players count. Spans are half-open,
`[start, end)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

Span = tuple[float, float]
STORE_FORMAT = 2  # of a feature store's files
CLIP_S = 2.0  # seconds of a clip that QVHighlights rates


@dataclass(frozen=True)
class Video:
    """One video to embed. `fingerprint` changes when the file does (size and mtime); `size` is in bytes."""

    video_id: str
    uri: str
    fingerprint: str = ""
    size: int = 0


@dataclass(frozen=True)
class Annotation:
    """One query and the moment(s) of one video that show it."""

    video_id: str
    query: str
    spans: tuple[Span, ...]
    duration: float | None = None
    # QVHighlights: [clips of CLIP_S seconds, annotators], 0 (very bad, or not in a moment) to 4 (very good).
    # Not in the repr, because a run is identified by the repr of its annotations.
    saliency: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Moment:
    """A found moment. `score` orders the moments of one query; higher is better."""

    video_id: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Quarantined:
    """A video that could not be embedded, and why."""

    video_id: str
    uri: str
    stage: str
    error: str
    attempts: int = 1


@dataclass(frozen=True)
class Partial:
    """A damaged video of which the readable frames are embedded, and what is wrong with it."""

    video_id: str
    damage: str


@dataclass(frozen=True)
class Progress:
    """How far an embed job is; `hours` (of video) and `frames` count this run's work only.

    `seconds` have passed; `seconds_left` is a guess by bytes, None at the start.
    """

    videos: int
    done: int
    failed: int
    frames: int
    hours: float
    seconds: float
    seconds_left: float | None

    @property
    def hours_per_hour(self) -> float:
        return self.hours * 3600 / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Summary:
    """What an embed job did; `hours` (of video), `frames` and rates count this run's work only."""

    videos: int
    embedded: int
    skipped: int
    quarantined: list[Quarantined] = field(default_factory=list)
    partial: list[Partial] = field(default_factory=list)
    hours: float = 0.0
    frames: int = 0
    seconds: float = 0.0
    frames_per_second: float = 0.0
    hours_per_hour: float = 0.0


@dataclass(frozen=True)
class StoreSpec:
    """What every feature in a store has in common."""

    encoder: str
    dim: int
    sampling: str
    format: int = STORE_FORMAT


@dataclass
class VideoFeatures:
    """One video: T sampled frames and their features.

    `times` [T] and `edges` [T+1] are seconds; `features` [T, dim] float16.
    """

    video_id: str
    uri: str
    duration: float
    times: np.ndarray
    edges: np.ndarray
    features: np.ndarray
    partial: bool = False


def feature_schema(dim: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The feature store: one row a chunk of one video; the video is complete with its `last` chunk.

    `times` are the timestamps of the sampled frames; `edges` (one more than times) bound the time
    each frame stands for: frame i covers `[edges[i], edges[i+1])`. `features` is frames x dim, flat.
    """
    return pa.schema(
        [
            pa.field("video_id", pa.string(), nullable=False),
            pa.field("chunk", pa.int32(), nullable=False),
            pa.field("last", pa.bool_(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("fingerprint", pa.string(), nullable=False),
            pa.field("duration", pa.float64(), nullable=False),
            pa.field("partial", pa.bool_(), nullable=False),
            pa.field("times", pa.list_(pa.float64()), nullable=False),
            pa.field("edges", pa.list_(pa.float64()), nullable=False),
            pa.field("features", pa.list_(pa.list_(pa.float16(), dim)), nullable=False),
        ],
        metadata=metadata,
    )
