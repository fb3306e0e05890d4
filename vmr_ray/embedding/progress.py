"""The progress of an embed job: for its caller, for the summary, and for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from vmr_ray.schema import Partial, Progress, Quarantined, Spliced, Summary, Video


@dataclass
class _Unfinished:
    """A video of which some chunks have been written."""

    chunks: set[int] = field(default_factory=set)
    last: int | None = None
    frames: int = 0
    seconds: float = 0.0
    share: float = 0.0  # of its duration


class Tally:
    """Counts the rows that come out of the pipeline; parts and chunks may arrive in any order."""

    def __init__(self, videos: int, todo: list[Video], progress: Callable[[Progress], None] | None):
        """`videos` counts those that are finished already, too; `progress` is called after each row."""
        self.failed: dict[str, Quarantined] = {}
        self._damage: dict[str, str] = {}
        self._splices: dict[str, list[float]] = {}
        self._unfinished: dict[str, _Unfinished] = {}
        self._videos, self._progress = videos, progress
        self._done, self._frames, self._seconds = videos - len(todo), 0, 0.0
        # The bytes are the best estimate of how much work is left.
        self._weights = {video.video_id: max(1, video.size) for video in todo}
        self._work, self._worked = sum(self._weights.values()), 0.0
        self._began = time.monotonic()
        self._publish()

    def add(self, row: dict[str, Any]) -> None:
        """Count one written chunk or one failed video."""
        name = row["video_id"]
        if row["error"] is not None:
            self.take_back(name)
            self._worked += self._weights[name] * (name not in self.failed)
            self.failed[name] = Quarantined(name, row["uri"], row["stage"], row["error"], row["attempts"])
            _metrics().videos.inc(1, {"outcome": "quarantined"})
        elif name not in self.failed:
            video = self._unfinished.setdefault(name, _Unfinished())
            share = row["seconds"] / row["duration"]
            video.chunks.add(row["chunk"])
            video.frames += row["frames"]
            video.seconds += row["seconds"]
            video.share += share
            self._frames += row["frames"]
            self._seconds += row["seconds"]
            self._worked += self._weights[name] * share
            if row["damage"]:
                self._damage.setdefault(name, row["damage"])
            if row["splices"]:
                self._splices[name] = row["splices"]
            if row["last"]:
                video.last = row["chunk"]
            if video.last is not None and len(video.chunks) == video.last + 1:
                del self._unfinished[name]
                self._done += 1
                _metrics().videos.inc(1, {"outcome": "embedded"})
            _metrics().frames.inc(row["frames"])
            _metrics().seconds.inc(row["seconds"])
        self._publish()

    def take_back(self, video_id: str) -> None:
        """Subtract what was counted of an unfinished video."""
        if video := self._unfinished.pop(video_id, None):
            self._frames -= video.frames
            self._seconds -= video.seconds
            self._worked -= self._weights[video_id] * video.share
        self._damage.pop(video_id, None)
        self._splices.pop(video_id, None)

    def summary(self, embedded: int, skipped: int) -> Summary:
        elapsed = time.monotonic() - self._began
        return Summary(
            videos=self._videos,
            embedded=embedded,
            skipped=skipped,
            quarantined=[self.failed[name] for name in sorted(self.failed)],
            partial=[Partial(name, self._damage[name]) for name in sorted(self._damage)],
            spliced=[Spliced(name, self._splices[name]) for name in sorted(self._splices)],
            hours=self._seconds / 3600,
            frames=self._frames,
            seconds=elapsed,
            frames_per_second=self._frames / elapsed,
            hours_per_hour=self._seconds / elapsed,
        )

    def _publish(self) -> None:
        elapsed = time.monotonic() - self._began
        left = elapsed * (self._work / self._worked - 1) if self._worked > 0 else None
        if self._progress:
            self._progress(
                Progress(
                    videos=self._videos,
                    done=self._done,
                    failed=len(self.failed),
                    frames=self._frames,
                    hours=self._seconds / 3600,
                    seconds=elapsed,
                    seconds_left=None if left is None else max(0.0, left),
                )
            )
        if self._worked > 0:
            _metrics().left.set(self._videos - self._done - len(self.failed))
            _metrics().eta.set(max(0.0, left or 0.0))


class _Metrics:
    """Metrics on Ray's Prometheus endpoint of every node, where their names start with `ray_`."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        self.videos = Counter(
            "vmr_embed_videos", "Videos that an embed job has ended with, by outcome.", tag_keys=("outcome",)
        )
        self.frames = Counter("vmr_embed_frames", "Frames embedded.")
        self.seconds = Counter("vmr_embed_video_seconds", "Seconds of video embedded.")
        self.left = Gauge("vmr_embed_videos_left", "Videos that the embed job has still to do.")
        self.eta = Gauge("vmr_embed_eta_seconds", "Seconds until the embed job ends, as far as known.")


@cache
def _metrics() -> _Metrics:
    """Made with the first row, because Ray must be running."""
    return _Metrics()
