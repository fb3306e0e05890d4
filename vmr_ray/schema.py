"""The records that the stages hand on, and their units.

Times are float seconds from the beginning of the video's file, as players count. Spans are half-open,
`[start, end)`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Span = tuple[float, float]
Fit = Literal["squash", "crop", "pad"]
STORE_FORMAT = 2  # of a feature store's files
CLIP_S = 2.0  # seconds of a clip that QVHighlights rates


@dataclass(frozen=True)
class Video:
    """One video to embed. `fingerprint` (size and mtime) changes when the file does; `size` is in bytes."""

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
    """A moment in answer to a query. `score` orders the moments of one query; higher is better.

    `probability`, in [0, 1], is that of the moment showing what the query describes; None without a
    calibrated checkpoint.
    """

    video_id: str
    start: float
    end: float
    score: float
    probability: float | None = None


@dataclass(frozen=True)
class Quarantined:
    """A video that could not be embedded: `error` is the reason, `stage` where it failed."""

    video_id: str
    uri: str
    stage: str
    error: str
    attempts: int = 1


@dataclass(frozen=True)
class Partial:
    """A damaged video whose readable frames are embedded; `damage` says what is wrong with it."""

    video_id: str
    damage: str


@dataclass(frozen=True)
class Spliced:
    """A video whose clock jumps at these seconds, because recordings were put one after the other. Times
    continue there without a gap, as in players."""

    video_id: str
    at: list[float]


@dataclass(frozen=True)
class Progress:
    """How far an embed job is. `hours` (of video) and `frames` count this run's work only.

    `seconds` is the time since the start; `seconds_left` is estimated by bytes, None at the start.
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
    """What an embed job did. `hours` (of video), `frames` and the rates count this run's work only."""

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
    spliced: list[Spliced] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # files of the inputs that are not named like videos


@dataclass(frozen=True)
class StoreSpec:
    """What all features in a store have in common.

    Attributes:
        sampling: which frames they are of.
        fit: how the frames were made square, see `Scaling`. Stores of earlier versions and imported ones do
            not say it, which counts as "squash".
    """

    encoder: str
    dim: int
    sampling: str
    format: int = STORE_FORMAT
    fit: Fit = "squash"

    def as_json(self) -> dict[str, Any]:
        """All fields, without a `fit` that earlier versions do not know and do not need."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("fit", "squash")}


@dataclass(frozen=True)
class Scaling:
    """How a video's frame becomes an encoder's input, whose width and height are fixed.

    Attributes:
        fit: "squash" changes the shape; "crop" scales the frame until it covers the input and keeps the
            middle; "pad" scales it until it fits into the input and adds black bars.
        interpolation: "decoder" lets the video decoder scale, which is the fastest. "nearest", "box",
            "bilinear", "hamming", "bicubic" and "lanczos" are Pillow's filters on the full-resolution frame,
            as image processors use them.
        edge: the frame is first scaled for an input of `edge` x `edge`, of which the middle is kept; 0: for
            the input itself.
    """

    fit: Fit = "squash"
    interpolation: str = "decoder"
    edge: int = 0


@dataclass(frozen=True)
class Chunk:
    """Consecutive sampled frames of one video: which ones, and the time they cover.

    Times count from the file's beginning. A video stream may begin later (than the sound, say): the first
    edge of the first chunk is the first frame's timestamp.

    Attributes:
        index: 0, 1, 2 ... within the video.
        last: no chunk follows.
        duration: seconds from the first frame's start to the last one's end, of the whole video.
        times: float64 [n], presentation timestamps of the frames.
        edges: float64 [n + 1], frame i stands for `[edges[i], edges[i + 1])`.
        damage: what is known to be damaged or missing in the file, in words, or empty; a video is partial
            if any of its chunks is damaged.
    """

    index: int
    last: bool
    duration: float
    times: np.ndarray
    edges: np.ndarray
    damage: str


@dataclass
class VideoFeatures:
    """One video: T sampled frames and their features.

    `times` [T] and `edges` [T + 1] are seconds, see `Chunk`; `features` is float16 [T, dim].
    """

    video_id: str
    uri: str
    duration: float
    times: np.ndarray
    edges: np.ndarray
    features: np.ndarray
    partial: bool = False
