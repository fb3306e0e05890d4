"""Two-stage moment search over an index, as a plain class: no Ray, no HTTP.

Stage 1 finds, in LanceDB, the segments whose vectors are nearest to the query's.
Stage 2 scores spans in the windows that hold these segments, with the cross-interaction network and the
windows' cached states.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import Queries
from vmr_ray.model.spans import ScoredSpan, nms
from vmr_ray.model.windows import Window
from vmr_ray.schema import Moment
from vmr_ray.search.cache import LruCache
from vmr_ray.search.result import Saliency, SearchRequest, SearchResult
from vmr_ray.search.tables import IndexTables, SegmentRows, file_version, version_of, video_of
from vmr_ray.storage import absolute, join

_CACHED_WINDOWS = 2048
_CACHED_VIDEOS = 65_536
_COMPARED_SEGMENTS = 8192  # of the named videos, compared here and not by LanceDB: 8 MB


class Searcher:
    """Moment search over the index at `index` (a local directory or an object-storage URI).

    Raises:
        VmrError: there is no index, or its checkpoint is damaged.
    """

    def __init__(self, index: str | Path, config: SearchConfig | None = None, device: str = "cpu"):
        self.config = config or SearchConfig()
        self.index = absolute(index)
        self.tables = IndexTables.open(self.index)
        self.predictor = load_predictor(join(self.index, "checkpoint"), device)
        self._windows = LruCache(_CACHED_WINDOWS, self._load_windows)
        self._videos = LruCache(_CACHED_VIDEOS, self._load_videos)

    @property
    def version(self) -> str:
        """The checksum of the checkpoint that ranks."""
        return self.predictor.info.version

    def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """The indexed videos (or those of `video_ids`), sorted by video_id: `limit` of them from number
        `offset` on. Fields: video_id, uri, version (of its file), metadata, duration in seconds, frames,
        partial."""
        if limit is not None and video_ids is None:
            video_ids, offset = sorted(self.tables.video_ids())[offset : offset + limit], 0
        rows = sorted(self.tables.read_videos(video_ids), key=lambda row: str(row["video_id"]))
        for row in rows:
            row["version"] = file_version(row["version"])
            row["metadata"] = json.loads(row["metadata"])
        return rows[offset:] if limit is None else rows[offset : offset + limit]

    def search(
        self, query: str, top_k: int = 10, video_ids: Sequence[str] | None = None, **more: Any
    ) -> SearchResult:
        """The moments that show what `query` says, best first; `more` are other fields of `SearchRequest`.

        Raises:
            VmrError: the request is not valid (see `SearchRequest.check`), or a video is not indexed.
        """
        (answer,) = self.search_many([SearchRequest(query, top_k, video_ids, **more)])
        if isinstance(answer, VmrError):
            raise answer
        return answer

    def search_many(
        self, requests: Sequence[SearchRequest], tokens: Sequence[np.ndarray] | None = None
    ) -> list[SearchResult | VmrError]:
        """Several searches at once. An invalid request is answered with a VmrError, the others with a result.

        Args:
            tokens: the text encoder's states of every query, each [L, token_dim], if they are known already.
        """
        answers: dict[int, SearchResult | VmrError] = {}
        valid = []
        for i, request in enumerate(requests):
            try:
                request.check(self.config)
                if request.min_probability and self.predictor.info.presence is None:
                    raise VmrError("this index has no calibrated probabilities: leave min_probability out")
                valid.append(i)
            except VmrError as error:
                answers[i] = error
        if valid:
            known = None if tokens is None else [tokens[i] for i in valid]
            answers.update(zip(valid, self._search([requests[i] for i in valid], known), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _search(
        self, requests: Sequence[SearchRequest], tokens: Sequence[np.ndarray] | None
    ) -> list[SearchResult | VmrError]:
        """Answers valid requests; VmrError where a named video is not indexed."""
        clock = [time.perf_counter()]
        if tokens is None:
            tokens = self.predictor.text([request.query.strip() for request in requests])
        queries = self.predictor.encode_tokens(tokens)
        clock.append(time.perf_counter())

        # Stage 1: which windows are worth a closer look?
        candidates = self._candidates(requests, queries.vectors.float().cpu().numpy())
        mistakes = [self._unknown_video(*pair) for pair in zip(requests, candidates, strict=True)]
        clock.append(time.perf_counter())

        # Stage 2: where in these windows is the moment?
        windows = self._windows.get(window_id for ids in candidates for window_id in ids)
        spans = self._ranked_spans(requests, queries, candidates, windows)
        answers: list[SearchResult | VmrError] = []
        for q, (request, mistake) in enumerate(zip(requests, mistakes, strict=True)):
            own = {window_id: windows[window_id] for window_id in candidates[q] if window_id in windows}
            answers.append(mistake or self._result(request, queries, q, own, spans[q]))
        clock.append(time.perf_counter())

        stages = zip(("encode", "candidates", "rank"), clock, clock[1:], strict=False)
        took_ms = {name: 1000 * (end - start) for name, start, end in stages}
        took_ms["total"] = 1000 * (clock[-1] - clock[0])
        return [a if isinstance(a, VmrError) else replace(a, took_ms=took_ms) for a in answers]

    # -- stage 1 ---------------------------------------------------------------------------------

    def _candidates(self, requests: Sequence[SearchRequest], vectors: np.ndarray) -> list[list[str]]:
        """For every query (its vector is a row of [Q, dim]) the windows with the nearest segments."""
        # The segments of named videos are read once for all requests, unless they are too many.
        named = {v for request in requests if not request.filter for v in request.video_ids or ()}
        segments = self.tables.read_segments(named, _COMPARED_SEGMENTS) if named else None
        candidates: list[list[str]] = []
        for request, vector in zip(requests, vectors, strict=True):
            if segments is not None and request.video_ids is not None and not request.filter:
                ids = _nearest_windows_of(segments, request.video_ids, vector, self.config.candidates)
            else:
                ids = self.tables.nearest_windows(
                    vector, self.config.candidates, self.config.partitions, request.video_ids, request.filter
                )
            candidates.append(ids)
        counted = self._videos_of(window_id for ids in candidates for window_id in ids)
        # A window without its video is one that is being added or deleted.
        return [
            [window_id for window_id in ids if version_of(window_id) in counted][: self.config.windows]
            for ids in candidates
        ]

    def _unknown_video(self, request: SearchRequest, window_ids: Sequence[str]) -> VmrError | None:
        """The error that the request names a video that is not indexed."""
        found = {video_of(window_id) for window_id in window_ids}  # these need no look into the table
        if unsure := [video_id for video_id in request.video_ids or () if video_id not in found]:
            known = {row["video_id"] for row in self.tables.read_videos(unsure, ["video_id"])}
            if missing := [video_id for video_id in unsure if video_id not in known]:
                return VmrError(f"the video {missing[0]!r} is not in the index: see the list of videos")
        return None

    # -- stage 2 ---------------------------------------------------------------------------------

    def _ranked_spans(
        self,
        requests: Sequence[SearchRequest],
        queries: Queries,
        candidates: Sequence[Sequence[str]],
        windows: Mapping[str, Window],
    ) -> list[dict[str, list[ScoredSpan]]]:
        """For every query the spans by window_id, as the network scores them in the query's candidates."""
        positions = {window_id: i for i, window_id in enumerate(windows)}
        # A window whose video was deleted in the meantime has not been loaded.
        found = [(w, q) for q, ids in enumerate(candidates) for w in ids if w in positions]
        pairs = [(positions[w], q) for w, q in found]
        top_k = max(_end_of_page(request) for request in requests) + 1  # one more shows if a page follows
        ranked = self.predictor.rank(list(windows.values()), queries, pairs, top_k, self.config.nms)
        spans: list[dict[str, list[ScoredSpan]]] = [{} for _ in requests]
        for (window_id, q), window_spans in zip(found, ranked, strict=True):
            spans[q][window_id] = window_spans
        return spans

    def _result(
        self,
        request: SearchRequest,
        queries: Queries,
        query: int,
        windows: Mapping[str, Window],
        spans: Mapping[str, list[ScoredSpan]],
    ) -> SearchResult:
        """The answer to a request whose query is number `query`, whose candidates are `windows`, and whose
        spans in them are `spans`, by window_id."""
        moments = self._moments(request, spans)
        probable = self._probable(request, moments)
        page = probable[request.offset : _end_of_page(request)]
        nearest = [] if probable else moments[request.offset : _end_of_page(request)]
        shown = {moment.video_id for moment in (*page, *nearest)}
        shown_windows = {name: window for name, window in windows.items() if window.video_id in shown}
        saliency = self._saliency(list(shown_windows.values()), queries, query) if request.saliency else {}
        return SearchResult(
            request.query.strip(),
            page,
            candidates=list(dict.fromkeys(map(video_of, spans))),
            more=len(probable) > _end_of_page(request),
            model_version=self.version,
            saliency=saliency,
            durations=self._durations_of(shown_windows),
            found=bool(probable),
            nearest=nearest,
            probability=self._probability(request, spans),
        )

    def _moments(self, request: SearchRequest, spans: Mapping[str, list[ScoredSpan]]) -> list[Moment]:
        """The moments of all videos, best first and without overlaps: enough for the page and one more."""
        limit = 1 if request.group_by == "video" else _end_of_page(request) + 1
        presence = self.predictor.info.presence
        of_videos: dict[str, list[ScoredSpan]] = {}
        for window_id, window_spans in spans.items():
            of_videos.setdefault(video_of(window_id), []).extend(window_spans)
        moments = [
            Moment(video_id, *span, None if presence is None else presence.probability(span[2]))
            for video_id, video_spans in of_videos.items()
            for span in nms(video_spans, self.config.nms, limit)
        ]
        if request.min_score is not None:
            moments = [moment for moment in moments if moment.score >= request.min_score]
        return sorted(moments, key=lambda moment: (-moment.score, moment.video_id, moment.start))

    def _probable(self, request: SearchRequest, moments: list[Moment]) -> list[Moment]:
        """The moments that are probable enough for the request; all of them without a calibration."""
        lowest = request.min_probability
        if lowest is None and self.predictor.info.presence is not None:
            lowest = self.predictor.info.presence.min_probability
        return [m for m in moments if m.probability is None or lowest is None or m.probability >= lowest]

    def _probability(self, request: SearchRequest, spans: Mapping[str, list[ScoredSpan]]) -> float | None:
        """That any of the searched videos shows the query; None without a calibration."""
        presence = self.predictor.info.presence
        if presence is None:
            return None
        best = [window_spans[0][2] for window_spans in spans.values() if window_spans]
        return presence.of_any(best, self.tables.count_windows(request.video_ids, request.filter))

    def _saliency(self, windows: Sequence[Window], queries: Queries, query: int) -> dict[str, Saliency]:
        """By video, how surely the frames of these windows belong to the query's moment."""
        points: dict[str, list[tuple[float, float]]] = {}
        membership = self.predictor.membership_of(windows, queries, query)
        for window, values in zip(windows, membership, strict=True):
            low, high = window.core
            middles = (window.edges[:-1] + window.edges[1:])[low:high] / 2
            points.setdefault(window.video_id, []).extend(zip(middles.tolist(), values.tolist(), strict=True))
        return {
            video_id: Saliency(*map(list, zip(*sorted(video_points), strict=True)))
            for video_id, video_points in points.items()
        }

    # -- cached rows -----------------------------------------------------------------------------

    def _load_windows(self, window_ids: list[str]) -> dict[str, Window]:
        dim = self.predictor.info.dim
        return {
            row["window_id"]: Window(
                row["video_id"],
                int(row["window_id"].partition(":")[0]),
                np.asarray(row["edges"]),
                np.frombuffer(row["states"], np.float16).reshape(-1, dim),
                tuple(row["core"]),
            )
            for row in self.tables.read_windows(window_ids)
        }

    def _durations_of(self, windows: Mapping[str, Window]) -> dict[str, float]:
        """Seconds by video, for the videos of these windows."""
        durations = self._videos_of(windows)
        return {
            window.video_id: durations[version_of(window_id)]
            for window_id, window in windows.items()
            if version_of(window_id) in durations
        }

    def _videos_of(self, window_ids: Iterable[str]) -> dict[str, float]:
        """Seconds by `version_of`, of the indexed videos to which these windows belong."""
        # With the table's version, so that a row is read again after any change of the table.
        table = self.tables.videos_version()
        rows = self._videos.get(f"{table}:{video_of(window_id)}" for window_id in window_ids)
        return dict(rows.values())

    def _load_videos(self, keys: list[str]) -> dict[str, tuple[str, float]]:
        """`version_of` and seconds by key: a version of the table and a video_id."""
        names = {key.partition(":")[2]: key for key in keys}
        rows = self.tables.read_videos(names, ["video_id", "version", "duration"])
        return {
            names[row["video_id"]]: (f"{row['version']}:{row['video_id']}", row["duration"]) for row in rows
        }


def _nearest_windows_of(
    segments: SegmentRows, video_ids: Sequence[str], vector: np.ndarray, limit: int
) -> list[str]:
    """As `IndexTables.nearest_windows`, in rows that are in memory."""
    rows = np.flatnonzero(np.isin(segments.video_ids, list(video_ids)))
    if not len(rows):
        return []
    nearest = rows[np.argsort(-(segments.vectors[rows] @ vector), kind="stable")[:limit]]
    return list(dict.fromkeys(segments.window_ids[nearest]))


def _end_of_page(request: SearchRequest) -> int:
    return request.offset + request.top_k
