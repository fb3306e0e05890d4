"""A trained network at work: videos -> cached windows, queries -> states, both -> ranked spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vmr_ray.encoders import TextEncoder, text_encoder
from vmr_ray.model.checkpoint import CheckpointInfo, load_info, load_network
from vmr_ray.model.cross_interaction import Cells, CrossInteraction, Heads
from vmr_ray.model.inputs import Example, pad
from vmr_ray.model.spans import ScoredSpan, decode_cells, decode_spans
from vmr_ray.model.spans import nms as merge
from vmr_ray.model.windows import cores, windows


@dataclass(frozen=True)
class Window:
    """Up to `ModelConfig.window` frames of a video after the query-free tower, from its frame `first` on.

    `states` float16 [T, dim], `edges` [T+1] seconds, `vectors` float16 [T, dim] (unit; None once stored,
    for only the first stage needs them), `core` see `spans.cores`.
    """

    video_id: str
    first: int
    edges: np.ndarray
    states: np.ndarray
    core: tuple[int, int]
    vectors: np.ndarray | None = None


@dataclass(frozen=True)
class Run:
    """Neighbouring windows of a video as one stretch of frames, so that fusion sees no frame twice.

    `parts` are the windows' indices and their first frames in the run; `states` float16 [T, dim].
    """

    parts: list[tuple[int, int]]
    states: np.ndarray


def join(seen: Sequence[Window], most: int = 1024) -> list[Run]:
    """Every window in one run of at most `most` frames. A frame's state comes from the window that has it
    in its core, or else from the one at the run's end."""
    chains: list[list[int]] = []
    for i in sorted(range(len(seen)), key=lambda i: (seen[i].video_id, seen[i].first)):
        window = seen[i]
        if chains:
            begin, last = seen[chains[-1][0]], seen[chains[-1][-1]]
            neighbours = (last.video_id, last.first + last.core[1]) == (
                window.video_id,
                window.first + window.core[0],
            )
            if neighbours and window.first + len(window.states) - begin.first <= most:
                chains[-1].append(i)
                continue
        chains.append([i])
    return [_run(chain, [seen[i] for i in chain]) for chain in chains]


def _run(chain: list[int], seen: list[Window]) -> Run:
    start, last = seen[0].first, seen[-1]
    borders = [w.first + w.core[0] for w in seen[1:]]
    cuts = zip(seen, [start, *borders], [*borders, last.first + len(last.states)], strict=True)
    states = np.concatenate([w.states[low - w.first : high - w.first] for w, low, high in cuts])
    return Run([(i, w.first - start) for i, w in zip(chain, seen, strict=True)], states)


@dataclass(frozen=True)
class Queries:
    """Q encoded queries: `states` [Q, L, dim], `mask` [Q, L], `vectors` [Q, dim] (unit)."""

    states: Tensor
    mask: Tensor
    vectors: Tensor


class Predictor:
    """The network of a checkpoint and the text encoder it was trained with, on one device."""

    def __init__(self, network: CrossInteraction, info: CheckpointInfo, device: str = "cpu"):
        self.network, self.info, self.device = network.to(device).eval(), info, device

    @staticmethod
    def load(checkpoint: str | Path, device: str = "cpu") -> Predictor:
        """Raises VmrError if the checkpoint is missing, damaged or of another version."""
        info = load_info(checkpoint)
        if info.similarity:
            from vmr_ray.model.similarity import SimilarityPredictor

            predictor: Predictor = SimilarityPredictor(info, device)
        else:
            predictor = Predictor(*load_network(checkpoint), device=device)
        _ = predictor.text  # a service answers its first query as fast as the others
        return predictor

    @property
    def tells_membership(self) -> bool:
        return self.network.membership is not None

    @cached_property
    def text(self) -> TextEncoder:
        return text_encoder(self.info.text_encoder, self.device)

    @torch.inference_mode()
    def encode_videos(
        self, videos: Sequence[tuple[str, np.ndarray, np.ndarray]], batch: int = 32
    ) -> list[Window]:
        """(video_id, features [T, frame_dim], edges [T+1]) of every video -> its windows, in order."""
        cuts = []
        for video_id, frames, edges in videos:
            places = windows(len(frames), self.info.model.window)
            for (first, last), core in zip(places, cores(places), strict=True):
                cuts.append((video_id, first, frames[first:last], edges[first : last + 1], core))
        found = []
        for at in range(0, len(cuts), batch):
            part = cuts[at : at + batch]
            features, mask = (x.to(self.device) for x in pad([cut[2] for cut in part]))
            states, vectors = self._see(features, mask)
            for (video_id, first, cut, edges, core), s, v in zip(
                part, _half(states), _half(vectors), strict=True
            ):
                found.append(Window(video_id, first, edges, s[: len(cut)], core, v[: len(cut)]))
        return found

    def _see(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T, frame_dim] -> their states and unit vectors, both [B, T, dim]."""
        states = self.network.encode_video(features, mask)
        return states, self.network.project_video(states, mask)

    @torch.inference_mode()
    def encode_queries(self, texts: Sequence[str]) -> Queries:
        return self.encode_tokens(self.text(list(texts)))

    @torch.inference_mode()
    def encode_tokens(self, tokens: Sequence[np.ndarray]) -> Queries:
        """Token states of every query, each [L, token_dim]."""
        padded, mask = (x.to(self.device) for x in pad(tokens))
        states = self.network.encode_query(padded, mask)
        return Queries(states, mask, self.network.project_query(states, mask))

    @torch.inference_mode()
    def rank(
        self,
        seen: Sequence[Window],
        queries: Queries,
        pairs: Sequence[tuple[int, int]],
        top_k: int,
        nms: float,
        batch: int | None = None,
    ) -> list[list[ScoredSpan]]:
        """For every pair (index of a window, index of a query) the window's best spans, best first.

        To compare windows of many videos, the scores of a window are raised by what the projection says
        of its best span: the cosine with the query over the temperature it was trained with.
        """
        found: list[list[ScoredSpan]] = [[] for _ in pairs]
        runs = join(seen)
        place = {w: (r, first) for r, run in enumerate(runs) for w, first in run.parts}
        asked: dict[tuple[int, int], list[int]] = {}  # run and query -> the pairs that want them
        for i, (w, q) in enumerate(pairs):
            asked.setdefault((place[w][0], q), []).append(i)
        # Runs of like length meet, which spares padding, and all queries of a run, which share its part.
        jobs = sorted(asked, key=lambda job: (len(runs[job[0]].states), job))
        # A CPU is fastest while a batch fits its caches.
        batch = batch or (8 if self.device == "cpu" else 256)
        for at in range(0, len(jobs), batch):
            part = jobs[at : at + batch]
            shared = list(dict.fromkeys(run for run, _ in part))
            own = [shared.index(run) for run, _ in part]
            owner = None if own == list(range(len(part))) else torch.tensor(own, device=self.device)
            rows = torch.tensor([query for _, query in part], device=self.device)
            states, mask = (x.to(self.device) for x in pad([runs[run].states for run in shared]))
            heads = self.network.fuse(states, mask, queries.states[rows], queries.mask[rows], owner)
            frames = self.network.project_video(states, mask)
            wanted = [(row, i) for row, job in enumerate(part) for i in asked[job]]
            windows = [seen[pairs[i][0]] for _, i in wanted]
            firsts = [place[pairs[i][0]][1] for _, i in wanted]
            if self.network.quality is None:
                heads = heads._replace(fused=None)
            cut = _cut(heads, [row for row, _ in wanted], firsts, [len(w.states) for w in windows])
            ranked = self._decode(*cut, windows, top_k, nms)
            for (row, i), window, first, spans in zip(wanted, windows, firsts, ranked, strict=True):
                (start, end, _), edges = spans[0], window.edges
                low = min(int(np.searchsorted(edges, start, side="right")), len(edges) - 1) - 1
                high = max(int(np.searchsorted(edges, end)), low + 1)
                moment = normalize(frames[own[row], first + low : first + high].mean(0), dim=0)
                raised = float(moment @ queries.vectors[pairs[i][1]] / self.network.log_temperature.exp())
                found[i] = [(s, e, score + raised) for s, e, score in spans]
        return found

    def _decode(
        self, heads: Heads, mask: Tensor, seen: Sequence[Window], top_k: int, nms: float
    ) -> list[list[ScoredSpan]]:
        edges, cores = [w.edges for w in seen], [w.core for w in seen]
        if heads.cells is not None:
            return decode_cells(heads.cells, heads, mask, edges, top_k, cores)
        return decode_spans(heads, mask, edges, top_k, nms, self.network.quality, cores)

    def retrieve(self, examples: Sequence[Example], top_k: int, nms: float) -> list[list[ScoredSpan]]:
        """The best spans of every query of every example in its own video, best first."""
        queries = self.encode_tokens([tokens for e in examples for tokens in e.tokens])
        seen = self.encode_videos([(str(i), e.features, e.edges) for i, e in enumerate(examples)])
        by_video: dict[int, list[int]] = {}
        for w, window in enumerate(seen):
            by_video.setdefault(int(window.video_id), []).append(w)
        owners = [i for i, e in enumerate(examples) for _ in e.queries]
        pairs = [(w, q) for q, owner in enumerate(owners) for w in by_video[owner]]
        spans: list[list[ScoredSpan]] = [[] for _ in owners]
        for (_, q), found in zip(pairs, self.rank(seen, queries, pairs, top_k, nms), strict=True):
            spans[q] += found
        return [merge(found, nms, top_k) for found in spans]

    @torch.inference_mode()
    def membership_of(self, seen: Sequence[Window], queries: Queries, query: int) -> list[np.ndarray]:
        """How surely each frame of the windows' cores belongs to the moment, in [0, 1].

        Zeros without a membership head.
        """
        found = [np.zeros(window.core[1] - window.core[0]) for window in seen]
        for run in join(seen):
            states, mask = (x.to(self.device) for x in pad([run.states]))
            asked = queries.states[query : query + 1], queries.mask[query : query + 1]
            heads = self.network.fuse(states, mask, *asked)
            if heads.membership is not None:
                sure = heads.membership[0].sigmoid().cpu().numpy()
                for w, first in run.parts:
                    low, high = seen[w].core
                    found[w] = sure[first + low : first + high]
        return found

    def membership(self, example: Example) -> list[np.ndarray]:
        """How surely each frame belongs to the moment: for every query of the example [T], in [0, 1].

        Nothing without a membership head.
        """
        if not self.tells_membership:
            return []
        queries = self.encode_tokens(example.tokens)
        seen = self.encode_videos([(example.video_id, example.features, example.edges)])
        return [np.concatenate(self.membership_of(seen, queries, q)) for q in range(len(example.tokens))]


def _cut(
    heads: Heads, rows: Sequence[int], firsts: Sequence[int], counts: Sequence[int]
) -> tuple[Heads, Tensor]:
    """Windows out of runs: `counts[i]` frames of row `rows[i]` from frame `firsts[i]` on, and their mask."""
    frame_heads = (heads.start, heads.stop, heads.membership, heads.fused)
    device = next(x.device for x in frame_heads if x is not None)
    total = next(x.shape[1] for x in frame_heads if x is not None)
    row, first, count = (torch.tensor(x, device=device).unsqueeze(1) for x in (rows, firsts, counts))
    frames = torch.arange(max(counts), device=device)
    mask, at = frames < count, (first + frames).clamp_max(total - 1)
    cells = heads.cells
    if cells is not None:
        line = row.squeeze(1)
        cells = Cells(cells.centre - first, cells.stride, *(x[line] for x in cells[2:]))
    start, stop, membership, fused = (None if x is None else x[row, at] for x in frame_heads)
    return Heads(start, stop, membership, fused, cells), mask


def _half(x: Tensor) -> np.ndarray:
    return x.half().cpu().numpy()
