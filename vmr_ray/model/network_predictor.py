"""A trained network as a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vmr_ray.encoders import TextEncoder, text_encoder
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.cross_interaction import CrossInteraction, Heads, PyramidCells
from vmr_ray.model.inputs import pad
from vmr_ray.model.predictor import Queries, VideoInput, encode_in_windows
from vmr_ray.model.spans import ScoredSpan, decode_pyramid, decode_spans
from vmr_ray.model.windows import Stretch, Window, join_windows

# Pairs fused at once. A CPU is fastest while a batch fits into its caches.
_CPU_BATCH, _GPU_BATCH = 8, 256


class NetworkPredictor:
    """The network of a checkpoint and the text encoder it was trained with, on one device."""

    def __init__(self, network: CrossInteraction, info: CheckpointInfo, device: str = "cpu"):
        self.network, self.info, self.device = network.to(device).eval(), info, device

    @property
    def has_membership(self) -> bool:
        return self.network.membership is not None

    @cached_property
    def text(self) -> TextEncoder:
        return text_encoder(self.info.text_encoder, self.device)

    @torch.inference_mode()
    def encode_videos(self, videos: Sequence[VideoInput], batch: int = 32) -> list[Window]:
        return encode_in_windows(videos, self.info.model.window, self._encode_frames, self.device, batch)

    def _encode_frames(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, T, frame_dim] -> states and unit vectors, both [B, T, dim]."""
        states = self.network.encode_video(features, mask)  # [B, T, dim]
        return states, self.network.project_video(states, mask)

    @torch.inference_mode()
    def encode_tokens(self, tokens: Sequence[np.ndarray]) -> Queries:
        padded, mask = (x.to(self.device) for x in pad(tokens))  # [Q, L, token_dim], [Q, L]
        states = self.network.encode_query(padded, mask)  # [Q, L, dim]
        return Queries(states, mask, self.network.project_query(states, mask))

    @torch.inference_mode()
    def rank(
        self,
        windows: Sequence[Window],
        queries: Queries,
        pairs: Sequence[tuple[int, int]],
        top_k: int,
        nms: float,
        batch: int | None = None,
    ) -> list[list[ScoredSpan]]:
        """See `Predictor.rank`. A stretch of windows and a query are fused once for all their pairs.

        To compare windows of many videos, the scores of a window are raised by how well the first stage's
        projection of its best span fits: the cosine with the query over the learned temperature.
        """
        ranked: list[list[ScoredSpan]] = [[] for _ in pairs]
        stretches = join_windows(windows)
        place = {w: (s, first) for s, stretch in enumerate(stretches) for w, first in stretch.parts}
        pairs_of: dict[tuple[int, int], list[int]] = {}  # stretch and query -> the pairs that need them
        for i, (w, q) in enumerate(pairs):
            pairs_of.setdefault((place[w][0], q), []).append(i)
        # Stretches of like length come together, which spares padding, and all queries of a stretch, which
        # share the part of fusion that needs the video only.
        jobs = sorted(pairs_of, key=lambda job: (len(stretches[job[0]].states), job))
        batch = batch or (_CPU_BATCH if self.device == "cpu" else _GPU_BATCH)
        for at in range(0, len(jobs), batch):
            part = jobs[at : at + batch]
            heads, frames = self._fuse(stretches, queries, part)
            rows, pair_ids = zip(
                *((row, i) for row, job in enumerate(part) for i in pairs_of[job]), strict=True
            )
            part_windows = [windows[pairs[i][0]] for i in pair_ids]
            firsts = [place[pairs[i][0]][1] for i in pair_ids]
            cut = _cut(heads, rows, firsts, [len(w.states) for w in part_windows])
            decoded = self._decode(*cut, part_windows, top_k, nms)
            for i, row, first, window, spans in zip(
                pair_ids, rows, firsts, part_windows, decoded, strict=True
            ):
                low, high = _frames_of(spans[0], window.edges)
                moment = normalize(frames[row][first + low : first + high].mean(0), dim=0)  # [dim]
                raised = float(moment @ queries.vectors[pairs[i][1]] / self.network.log_temperature.exp())
                ranked[i] = [(start, end, score + raised) for start, end, score in spans]
        return ranked

    def _fuse(
        self, stretches: Sequence[Stretch], queries: Queries, jobs: Sequence[tuple[int, int]]
    ) -> tuple[Heads, list[Tensor]]:
        """Fuse Q jobs (index of a stretch, index of a query).

        Returns:
            The heads of every job, and the unit vectors [T, dim] of its stretch.
        """
        used = list(dict.fromkeys(stretch for stretch, _ in jobs))  # B stretches
        video_of = [used.index(stretch) for stretch, _ in jobs]
        one_to_one = video_of == list(range(len(jobs)))
        video_index = None if one_to_one else torch.tensor(video_of, device=self.device)  # [Q]
        query_index = torch.tensor([query for _, query in jobs], device=self.device)  # [Q]
        states, mask = (x.to(self.device) for x in pad([stretches[s].states for s in used]))  # [B, T, dim]
        query_states, query_mask = queries.states[query_index], queries.mask[query_index]  # [Q, L, dim]
        heads = self.network.fuse(states, mask, query_states, query_mask, video_index)
        if self.network.quality is None:
            heads = heads._replace(fused=None)  # only the quality head reads it
        vectors = self.network.project_video(states, mask)  # [B, T, dim]
        return heads, [vectors[row] for row in video_of]

    def _decode(
        self, heads: Heads, mask: Tensor, windows: Sequence[Window], top_k: int, nms: float
    ) -> list[list[ScoredSpan]]:
        edges, cores = [w.edges for w in windows], [w.core for w in windows]
        if heads.cells is not None:
            return decode_pyramid(heads.cells, heads, mask, edges, top_k, cores)
        return decode_spans(heads, mask, edges, top_k, nms, self.network.quality, cores)

    @torch.inference_mode()
    def membership_of(self, windows: Sequence[Window], queries: Queries, query: int) -> list[np.ndarray]:
        """See `Predictor.membership_of`; zeros without a membership head."""
        curves = [np.zeros(window.core[1] - window.core[0]) for window in windows]
        query_states, query_mask = queries.states[query : query + 1], queries.mask[query : query + 1]
        for stretch in join_windows(windows):
            states, mask = (x.to(self.device) for x in pad([stretch.states]))  # [1, T, dim], [1, T]
            heads = self.network.fuse(states, mask, query_states, query_mask)
            if heads.membership is not None:
                probabilities = heads.membership[0].sigmoid().cpu().numpy()  # [T]
                for w, first in stretch.parts:
                    low, high = windows[w].core
                    curves[w] = probabilities[first + low : first + high]
        return curves


def _frames_of(span: ScoredSpan, edges: np.ndarray) -> tuple[int, int]:
    """The frames `[low, high)` that a span in seconds touches, at least one."""
    start, end, _ = span
    low = min(int(np.searchsorted(edges, start, side="right")), len(edges) - 1) - 1
    return low, max(int(np.searchsorted(edges, end)), low + 1)


def _cut(
    heads: Heads, rows: Sequence[int], firsts: Sequence[int], counts: Sequence[int]
) -> tuple[Heads, Tensor]:
    """Cut Q windows out of heads of stretches: `counts[i]` frames of row `rows[i]` from frame `firsts[i]`.

    Returns:
        The heads [Q, T] of the windows and their mask [Q, T].
    """
    frame_heads = (heads.start, heads.stop, heads.membership, heads.fused)
    device = next(x.device for x in frame_heads if x is not None)
    total = next(x.shape[1] for x in frame_heads if x is not None)
    row, first, count = (
        torch.tensor(x, device=device).unsqueeze(1) for x in (rows, firsts, counts)
    )  # [Q, 1]
    frames = torch.arange(max(counts), device=device)  # [T]
    mask, at = frames < count, (first + frames).clamp_max(total - 1)  # [Q, T] both
    cells = heads.cells
    if cells is not None:
        pair = row.squeeze(1)  # [Q]
        cells = PyramidCells(  # centres [Q, N] now count from the window's first frame; the rest is [Q, N]
            cells.centre - first, cells.stride, *(x[pair] for x in cells[2:])
        )
    start, stop, membership, fused = (None if x is None else x[row, at] for x in frame_heads)  # [Q, T, ...]
    return Heads(start, stop, membership, fused, cells), mask
