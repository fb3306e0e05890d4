"""Two-stage moment search over an index, as a plain class: no Ray, no HTTP.

Stage 1 compares the query's vector with the segments' in LanceDB; stage 2 lets the cross-interaction
network score the windows that hold the nearest segments, over their cached states.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import Queries
from vmr_ray.model.spans import ScoredSpan, nms
from vmr_ray.model.windows import Window
from vmr_ray.schema import Moment
from vmr_ray.search.build import open_tables, quoted, tag
from vmr_ray.search.result import Saliency, SearchRequest, SearchResult
from vmr_ray.storage import absolute

_CACHED_WINDOWS = 2048
_HELD_SEGMENTS = 8192  # of named videos, compared without LanceDB: 8 MB


def _video_of(window_id: str) -> str:
    """The id of a window's video; the window's is `first frame:version:video id`."""
    return window_id.split(":", 2)[2]


class Searcher:
    """Moment search over the index at `index` (a local directory or an object-storage URI).

    Raises:
        VmrError: there is no index, or its checkpoint is damaged.
    """

    def __init__(self, index: str | Path, config: SearchConfig | None = None, device: str = "cpu"):
        self.config = config or SearchConfig()
        self.index = absolute(index)
        self.tables = open_tables(self.index)
        self.predictor = load_predictor(f"{self.index}/checkpoint", device)
        self._cache: OrderedDict[str, Window] = OrderedDict()
        self._durations: dict[str, float] = {}  # by version and video, as window ids end
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """The checksum of the checkpoint that ranks."""
        return self.predictor.info.version

    def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """The indexed videos (or those of `video_ids`): video_id, uri, metadata, duration in seconds,
        frames, partial; by video_id, `limit` of them from number `offset` on."""
        table = self.tables["videos"]
        if limit is not None and video_ids is None:
            ids = table.search().select(["video_id"]).limit(None).to_arrow()["video_id"].to_pylist()
            video_ids, offset = sorted(ids)[offset : offset + limit], 0
        search = table.search()
        if video_ids is not None:
            if not video_ids:
                return []
            search = search.where(f"video_id IN {quoted(video_ids)}")
        rows = search.limit(None).to_arrow().to_pylist()
        for row in rows:
            row["metadata"] = json.loads(row["metadata"])
        rows.sort(key=lambda row: row["video_id"])
        return rows[offset:] if limit is None else rows[offset : offset + limit]

    def search(
        self, query: str, top_k: int = 10, video_ids: Sequence[str] | None = None, **more: Any
    ) -> SearchResult:
        """The moments that show what `query` says, best first; `more` are further fields of `SearchRequest`.

        Raises:
            VmrError: the query is empty or too long, top_k is out of range, or a video is not indexed.
        """
        (found,) = self.search_many([SearchRequest(query, top_k, video_ids, **more)])
        if isinstance(found, VmrError):
            raise found
        return found

    def search_many(
        self, asks: Sequence[SearchRequest], tokens: Sequence[np.ndarray] | None = None
    ) -> list[SearchResult | VmrError]:
        """Several searches at once. A mistake in one is its own answer and does not touch the others.

        Args:
            tokens: of every query the states of the text encoder, if they are known already.
        """
        clock = [time.perf_counter()]
        answers: list[SearchResult | VmrError | None] = [self._mistake(ask) for ask in asks]
        good = [i for i, answer in enumerate(answers) if answer is None]
        if not good:
            return cast("list[SearchResult | VmrError]", answers)
        states = (
            self.predictor.text([asks[i].query.strip() for i in good])
            if tokens is None
            else [tokens[i] for i in good]
        )
        encoded = self.predictor.encode_tokens(states)
        clock.append(time.perf_counter())
        wanted = self._candidates([asks[i] for i in good], encoded.vectors.float().cpu().numpy())
        for windows, i in zip(wanted, good, strict=True):
            answers[i] = self._unknown_video(asks[i], windows)
        clock.append(time.perf_counter())
        held = self._windows(list(dict.fromkeys(w for windows in wanted for w in windows)))
        places = {name: i for i, name in enumerate(held)}
        seen = list(held.values())
        pairs = [(places[w], q) for q, windows in enumerate(wanted) for w in windows if w in places]
        most = max(asks[i].offset + asks[i].top_k for i in good) + 1
        ranked = self.predictor.rank(seen, encoded, pairs, most, self.config.nms)
        found: list[dict[str, list[ScoredSpan]]] = [{} for _ in good]
        for (w, q), spans in zip(pairs, ranked, strict=True):
            found[q].setdefault(seen[w].video_id, []).extend(spans)
        for q, i in enumerate(good):
            if answers[i] is not None:
                continue
            moments = self._ordered(asks[i], found[q])
            shown = moments[asks[i].offset : asks[i].offset + asks[i].top_k]
            saliency = {}
            if asks[i].saliency:
                named = {m.video_id for m in shown}
                near = [places[w] for w in wanted[q] if w in places and seen[places[w]].video_id in named]
                saliency = self._saliency([seen[w] for w in near], encoded, q)
            answers[i] = SearchResult(
                asks[i].query.strip(),
                shown,
                candidates=list(found[q]),
                more=len(moments) > asks[i].offset + asks[i].top_k,
                model_version=self.version,
                saliency=saliency,
                durations=self._lengths({m.video_id for m in shown}, held),
            )
        clock.append(time.perf_counter())
        names = ("encode", "candidates", "rank")
        took = {name: 1000 * (b - a) for name, a, b in zip(names, clock, clock[1:], strict=False)}
        took["total"] = 1000 * (clock[-1] - clock[0])
        return [
            replace(a, took_ms=took) if isinstance(a, SearchResult) else cast(VmrError, a) for a in answers
        ]

    def _mistake(self, ask: SearchRequest) -> VmrError | None:
        if not ask.query.strip():
            return VmrError("the query is empty: describe what happens in a sentence")
        if len(ask.query) > self.config.max_query_chars:
            return VmrError(
                f"the query has {len(ask.query)} characters, "
                f"at most {self.config.max_query_chars} are taken: shorten it"
            )
        if not 1 <= ask.top_k <= self.config.max_top_k:
            return VmrError(f"top_k is {ask.top_k}: it must be 1 to {self.config.max_top_k}")
        if ask.offset < 0:
            return VmrError(f"offset is {ask.offset}: it must be at least 0")
        if ask.video_ids is not None and not ask.video_ids:
            return VmrError("video_ids is empty: name a video, or leave it out to search all")
        return None

    def _unknown_video(self, ask: SearchRequest, windows: Sequence[str]) -> VmrError | None:
        """The mistake of naming a video that is not there. Those of the candidates need no look."""
        found = {_video_of(window) for window in windows}
        if asked := [video for video in ask.video_ids or () if video not in found]:
            known = {row["video_id"] for row in self.videos(asked)}
            if missing := [video for video in asked if video not in known]:
                return VmrError(f"the video {missing[0]!r} is not in the index: see the list of videos")
        return None

    def _candidates(self, asks: Sequence[SearchRequest], vectors: np.ndarray) -> list[list[str]]:
        """Stage 1: of every query the ids of the windows that hold the nearest segments, nearest first."""
        named = {video for ask in asks if not ask.filter for video in ask.video_ids or ()}
        there = self._segments_of(named) if named else None
        return [
            self._nearest(ask, vector)
            if there is None or ask.filter or ask.video_ids is None
            else self._nearest_of(there, ask.video_ids, vector)
            for ask, vector in zip(asks, vectors, strict=True)
        ]

    def _segments_of(self, videos: Collection[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """All segments of these videos, read at once: window ids, video ids, vectors [n, dim]. None if they
        are too many."""
        rows = self.tables["segments"].search().where(f"video_id IN {quoted(sorted(videos))}")
        table = rows.select(["window_id", "video_id", "vector"]).limit(_HELD_SEGMENTS + 1).to_arrow()
        if len(table) > _HELD_SEGMENTS:
            return None
        names = (table[name].to_numpy() for name in ("window_id", "video_id"))
        vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return *names, vectors.reshape(len(table), -1 if len(table) else 1)

    def _nearest_of(
        self, there: tuple[np.ndarray, np.ndarray, np.ndarray], videos: Sequence[str], vector: np.ndarray
    ) -> list[str]:
        windows, owners, vectors = there
        own = np.flatnonzero(np.isin(owners, list(videos)))
        if not len(own):
            return []
        order = np.argsort(-(vectors[own] @ vector), kind="stable")[: self.config.candidates]
        return list(dict.fromkeys(windows[own[order]]))[: self.config.windows]

    def _nearest(self, ask: SearchRequest, vector: np.ndarray) -> list[str]:
        search = self.tables["segments"].search(vector.astype(np.float32)).distance_type("dot")
        if ask.video_ids is not None:
            search = search.bypass_vector_index()  # so few segments are compared one by one
        elif ask.filter:
            # More partitions, if the filter leaves too few segments in these.
            search = search.minimum_nprobes(self.config.partitions).maximum_nprobes(0)
        else:
            search = search.nprobes(self.config.partitions)
        wanted = []
        if ask.video_ids is not None:
            wanted.append(f"video_id IN {quoted(ask.video_ids)}")
        for key, value in (ask.filter or {}).items():
            values = [value] if isinstance(value, str | int | float | bool) else list(value)
            tags = ", ".join("'" + tag(key, v).replace("'", "''") + "'" for v in values)
            wanted.append(f"array_has_any(tags, [{tags}])")
        if wanted:
            search = search.where(" AND ".join(wanted), prefilter=True)
        near = search.select(["window_id", "_distance"]).limit(self.config.candidates).to_arrow()
        return list(dict.fromkeys(near["window_id"].to_pylist()))[: self.config.windows]

    def _ordered(self, ask: SearchRequest, found: Mapping[str, list[ScoredSpan]]) -> list[Moment]:
        """All moments of a query, best first."""
        most = 1 if ask.group_by == "video" else ask.offset + ask.top_k + 1
        moments = [
            Moment(video, *span)
            for video, spans in found.items()
            for span in nms(spans, self.config.nms, most)
        ]
        if ask.min_score is not None:
            moments = [m for m in moments if m.score >= ask.min_score]
        return sorted(moments, key=lambda m: (-m.score, m.video_id, m.start))

    def _saliency(self, seen: Sequence[Window], queries: Queries, query: int) -> dict[str, Saliency]:
        rows: dict[str, list[tuple[float, float]]] = {}
        for window, sure in zip(seen, self.predictor.membership_of(seen, queries, query), strict=True):
            low, high = window.core
            middles = (window.edges[:-1] + window.edges[1:])[low:high] / 2
            rows.setdefault(window.video_id, []).extend(zip(middles.tolist(), sure.tolist(), strict=True))
        return {
            video: Saliency(*map(list, zip(*sorted(points), strict=True))) for video, points in rows.items()
        }

    def _lengths(self, videos: set[str], held: Mapping[str, Window]) -> dict[str, float]:
        """Seconds by video, of those whose windows are held; looked up once for each version of a video."""
        keys = {w.video_id: i.partition(":")[2] for i, w in held.items() if w.video_id in videos}
        if missing := [video for video, key in keys.items() if key not in self._durations]:
            rows = self.tables["videos"].search().where(f"video_id IN {quoted(missing)}")
            for row in rows.select(["video_id", "duration"]).limit(len(missing)).to_arrow().to_pylist():
                self._durations[keys[row["video_id"]]] = row["duration"]
        return {video: self._durations[key] for video, key in keys.items() if key in self._durations}

    def _windows(self, ids: list[str]) -> dict[str, Window]:
        """The windows by their id; one whose video was deleted meanwhile is left out."""
        with self._lock:  # a service searches in several threads
            if missing := [i for i in ids if i not in self._cache]:
                self._load(missing)
            found = {i: self._cache[i] for i in ids if i in self._cache}
            for i in found:
                self._cache.move_to_end(i)
            while len(self._cache) > max(_CACHED_WINDOWS, len(ids)):
                self._cache.popitem(last=False)
            return found

    def _load(self, ids: list[str]) -> None:
        rows = self.tables["windows"].search().where(f"window_id IN {quoted(ids)}").limit(len(ids))
        dim = self.predictor.info.dim
        for row in rows.to_arrow().to_pylist():
            self._cache[row["window_id"]] = Window(
                row["video_id"],
                int(row["window_id"].partition(":")[0]),
                np.asarray(row["edges"]),
                np.frombuffer(row["states"], np.float16).reshape(-1, dim),
                tuple(row["core"]),
            )
