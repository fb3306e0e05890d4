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

from vmr_ray.batches import Example, pad
from vmr_ray.checkpoint import CheckpointInfo, load_network
from vmr_ray.encoders import TextEncoder, text_encoder
from vmr_ray.model.cross_interaction import CrossInteraction, Heads
from vmr_ray.model.spans import ScoredSpan, cores, decode_cells, decode_spans, windows
from vmr_ray.model.spans import nms as merge


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
class Queries:
    """Q encoded queries: `states` [Q, L, dim], `mask` [Q, L], `vectors` [Q, dim] (unit)."""

    states: Tensor
    mask: Tensor
    vectors: Tensor


class Predictor:
    """The network of a checkpoint and the text encoder it was trained with, on one device."""

    def __init__(self, network: CrossInteraction, info: CheckpointInfo, device: str = "cpu"):
        self.network, self.info, self.device = network.to(device).eval(), info, device

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "cpu") -> Predictor:
        """Raises VmrError if the checkpoint is missing, damaged or of another version."""
        predictor = cls(*load_network(checkpoint), device=device)
        _ = predictor.text  # a service answers its first query as fast as the others
        return predictor

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
            states = self.network.encode_video(features, mask)
            vectors = self.network.project_video(states, mask)
            for (video_id, first, cut, edges, core), s, v in zip(
                part, _half(states), _half(vectors), strict=True
            ):
                found.append(Window(video_id, first, edges, s[: len(cut)], core, v[: len(cut)]))
        return found

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
        # A CPU is fastest while a batch fits its caches.
        batch = batch or (8 if self.device == "cpu" else 256)
        # Window by window: what depends on a window alone is then computed once for many queries.
        order = sorted(range(len(pairs)), key=lambda i: pairs[i])
        for at in range(0, len(order), batch):
            part = [pairs[i] for i in order[at : at + batch]]
            shared = list(dict.fromkeys(w for w, _ in part))
            owner = torch.tensor([shared.index(w) for w, _ in part], device=self.device)
            rows = torch.tensor([q for _, q in part], device=self.device)
            states, mask = (x.to(self.device) for x in pad([seen[w].states for w in shared]))
            heads = self.network.fuse(states, mask, queries.states[rows], queries.mask[rows], owner)
            ranked = self._decode(heads, mask[owner], [seen[w] for w, _ in part], top_k, nms)
            frames = self.network.project_video(states, mask)
            for i, spans, (w, q), own in zip(order[at:], ranked, part, owner.tolist(), strict=False):
                (start, end, _), edges = spans[0], seen[w].edges
                first = min(int(np.searchsorted(edges, start, side="right")), len(edges) - 1) - 1
                last = max(int(np.searchsorted(edges, end)), first + 1)
                moment = normalize(frames[own, first:last].mean(0), dim=0)
                raised = float(moment @ queries.vectors[q] / self.network.log_temperature.exp())
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
    def membership(self, example: Example) -> list[np.ndarray]:
        """How surely each frame belongs to the moment: for every query of the example [T], in [0, 1].

        Where windows overlap, their mean. Nothing without a membership head.
        """
        queries = self.encode_tokens(example.tokens)
        total = np.zeros((len(example.tokens), len(example.features)))
        count = np.zeros(len(example.features))
        owner = torch.zeros(len(example.tokens), dtype=torch.long, device=self.device)
        for window in self.encode_videos([(example.video_id, example.features, example.edges)]):
            states, mask = (x.to(self.device) for x in pad([window.states]))
            heads = self.network.fuse(states, mask, queries.states, queries.mask, owner)
            if heads.membership is None:
                return []
            at = slice(window.first, window.first + len(window.states))
            total[:, at] += heads.membership.sigmoid().cpu().numpy()
            count[at] += 1
        return list(total / count)


def _half(x: Tensor) -> np.ndarray:
    return x.half().cpu().numpy()
