"""Two-stage moment search over an index, as a plain class: no Ray, no HTTP.

Stage 1 compares the query's vector with the segments' in LanceDB; stage 2 lets the cross-interaction
network score the windows that hold the nearest segments, over their cached states.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.index import open_tables, quoted
from vmr_ray.model.predictor import Predictor, Window
from vmr_ray.model.spans import nms
from vmr_ray.schema import Moment

_CACHED_WINDOWS = 2048


@dataclass(frozen=True)
class SearchResult:
    """The moments of one query, best first, and where the time went (milliseconds by stage).

    `candidates` are the videos that stage 1 passed on to stage 2, nearest first.
    """

    query: str
    moments: list[Moment]
    took_ms: dict[str, float] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)


class Searcher:
    """Moment search over the index at `index` (a local directory or an object-storage URI).

    Raises:
        VmrError: there is no index, or its checkpoint is damaged.
    """

    def __init__(self, index: str | Path, config: SearchConfig | None = None, device: str = "cpu"):
        self.config = config or SearchConfig()
        self.index = str(index) if "://" in str(index) else str(Path(index).expanduser().absolute())
        self.tables = open_tables(self.index)
        self.predictor = Predictor.load(f"{self.index}/checkpoint", device)
        self._cache: OrderedDict[str, Window] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """The checksum of the checkpoint that ranks."""
        return self.predictor.info.version

    def videos(self) -> list[dict[str, Any]]:
        """Every indexed video: video_id, uri, duration in seconds, frames, partial."""
        rows = self.tables["videos"].search().limit(None).to_arrow().to_pylist()
        return sorted(rows, key=lambda row: row["video_id"])

    def search(self, query: str, top_k: int = 10, video_ids: Sequence[str] | None = None) -> SearchResult:
        """The moments that show what `query` says, best first, over all videos or `video_ids` only.

        Raises:
            VmrError: the query is empty or too long, top_k is out of range, or a video is not indexed.
        """
        query = self._checked(query, top_k, video_ids)
        clock = [time.perf_counter()]
        encoded = self.predictor.encode_queries([query])
        clock.append(time.perf_counter())
        wanted = self._candidates(encoded.vectors[0].cpu().numpy(), video_ids)
        clock.append(time.perf_counter())
        seen = self._windows(wanted)
        found = self.predictor.rank(seen, encoded, [(i, 0) for i in range(len(seen))], top_k, self.config.nms)
        by_video: dict[str, list[Any]] = {}
        for window, spans in zip(seen, found, strict=True):
            by_video.setdefault(window.video_id, []).extend(spans)
        moments = [
            Moment(video, *span)
            for video, spans in by_video.items()
            for span in nms(spans, self.config.nms, top_k)
        ]
        moments.sort(key=lambda m: (-m.score, m.video_id, m.start))
        clock.append(time.perf_counter())
        names = ("encode", "candidates", "rank")
        took = {name: 1000 * (b - a) for name, a, b in zip(names, clock, clock[1:], strict=False)}
        took["total"] = 1000 * (clock[-1] - clock[0])
        return SearchResult(query, moments[:top_k], took, list(by_video))

    def _checked(self, query: str, top_k: int, video_ids: Sequence[str] | None) -> str:
        if not query.strip():
            raise VmrError("the query is empty: describe what happens in a sentence")
        if len(query) > self.config.max_query_chars:
            raise VmrError(
                f"the query has {len(query)} characters, "
                f"at most {self.config.max_query_chars} are taken: shorten it"
            )
        if not 1 <= top_k <= self.config.max_top_k:
            raise VmrError(f"top_k is {top_k}: it must be 1 to {self.config.max_top_k}")
        if video_ids is not None and not video_ids:
            raise VmrError("video_ids is empty: name a video, or leave it out to search all")
        if video_ids is not None:
            rows = (
                self.tables["videos"].search().where(f"video_id IN {quoted(video_ids)}")
                if video_ids
                else None
            )
            known = set(rows.limit(None).to_arrow()["video_id"].to_pylist()) if rows else set()
            if missing := [v for v in video_ids if v not in known]:
                raise VmrError(f"the video {missing[0]!r} is not in the index: see the list of videos")
        return query.strip()

    def _candidates(self, vector: np.ndarray, video_ids: Sequence[str] | None) -> list[str]:
        """Stage 1: the ids of the windows that hold the nearest segments, nearest first."""
        search = self.tables["segments"].search(vector.astype(np.float32)).distance_type("dot")
        if video_ids is not None:
            search = search.where(f"video_id IN {quoted(video_ids)}", prefilter=True)
        near = search.select(["window_id", "_distance"]).limit(self.config.candidates).to_arrow()
        return list(dict.fromkeys(near["window_id"].to_pylist()))[: self.config.windows]

    def _windows(self, ids: list[str]) -> list[Window]:
        with self._lock:  # a service searches in several threads
            return self._cached(ids)

    def _cached(self, ids: list[str]) -> list[Window]:
        missing = [i for i in ids if i not in self._cache]
        if missing:
            rows = (
                self.tables["windows"].search().where(f"window_id IN {quoted(missing)}").limit(len(missing))
            )
            dim = self.predictor.info.model.dim
            for row in rows.to_arrow().to_pylist():
                self._cache[row["window_id"]] = Window(
                    row["video_id"],
                    int(row["window_id"].partition(":")[0]),
                    np.asarray(row["edges"]),
                    np.frombuffer(row["states"], np.float16).reshape(-1, dim),
                    tuple(row["core"]),
                )
        windows = []
        for i in ids:
            self._cache.move_to_end(i)
            windows.append(self._cache[i])
        while len(self._cache) > max(_CACHED_WINDOWS, len(ids)):
            self._cache.popitem(last=False)
        return windows
