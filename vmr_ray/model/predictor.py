"""What a predictor does: videos -> cached windows, queries -> states, both -> ranked spans.

Two classes do it, a trained network (`network_predictor.py`) and a dual encoder without training
(`similarity.py`); `loader.py` chooses by the checkpoint. The functions here need only the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vmr_ray.encoders import TextEncoder
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.inputs import Example, pad
from vmr_ray.model.spans import ScoredSpan, nms
from vmr_ray.model.windows import Window, cut_windows, window_cores

# video id, features [T, frame_dim], edges [T + 1] in seconds
VideoInput = tuple[str, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Queries:
    """Q encoded queries: `states` [Q, L, dim], `mask` [Q, L], `vectors` [Q, dim] (unit)."""

    states: Tensor
    mask: Tensor
    vectors: Tensor


class Predictor(Protocol):
    """Finds the moments of queries in videos, on one device."""

    @property
    def info(self) -> CheckpointInfo: ...

    @property
    def has_membership(self) -> bool:
        """Whether `membership_of` returns more than zeros."""

    @property
    def text(self) -> TextEncoder:
        """The encoder whose token states `encode_tokens` takes; loaded at the first use."""

    def encode_videos(self, videos: Sequence[VideoInput], batch: int = 32) -> list[Window]:
        """Every video's windows, in order; `batch` of them are encoded at once."""

    def encode_tokens(self, tokens: Sequence[np.ndarray]) -> Queries:
        """tokens: the token states [L, token_dim] of every query."""

    def rank(
        self,
        windows: Sequence[Window],
        queries: Queries,
        pairs: Sequence[tuple[int, int]],
        top_k: int,
        nms: float,
        batch: int | None = None,
    ) -> list[list[ScoredSpan]]:
        """The best spans of every pair (index of a window, index of a query), best first.

        Args:
            top_k: spans a pair at most.
            nms: IoU above which the lower-scored of two spans is dropped.
            batch: how many pairs are computed at once; default: what suits the device.

        Returns:
            For every pair (start second, end second, score); scores of different windows and videos can be
            compared.
        """

    def membership_of(self, windows: Sequence[Window], queries: Queries, query: int) -> list[np.ndarray]:
        """For every window the probability, in [0, 1], that each frame of its core belongs to the moment."""


def encode_in_windows(
    videos: Sequence[VideoInput],
    window: int,
    encode_frames: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    device: str,
    batch: int,
) -> list[Window]:
    """Cut every video into windows of `window` frames and encode `batch` windows at once.

    `encode_frames` maps features [B, T, frame_dim] and their mask [B, T] to states and unit vectors, both
    [B, T, dim].
    """
    pieces = []
    for video_id, features, edges in videos:
        bounds = cut_windows(len(features), window)
        for (first, last), core in zip(bounds, window_cores(bounds), strict=True):
            pieces.append((video_id, first, features[first:last], edges[first : last + 1], core))
    windows = []
    for at in range(0, len(pieces), batch):
        part = pieces[at : at + batch]
        padded, mask = (x.to(device) for x in pad([piece[2] for piece in part]))  # [B, T, frame_dim], [B, T]
        states, vectors = (x.half().cpu().numpy() for x in encode_frames(padded, mask))  # [B, T, dim] both
        for (video_id, first, features, edges, core), s, v in zip(part, states, vectors, strict=True):
            real = len(features)
            windows.append(Window(video_id, first, edges, s[:real], core, v[:real]))
    return windows


@torch.inference_mode()
def retrieve(
    predictor: Predictor, examples: Sequence[Example], top_k: int, nms_iou: float
) -> list[list[ScoredSpan]]:
    """The best spans of every query of every example in its own video, best first."""
    queries = predictor.encode_tokens([tokens for e in examples for tokens in e.tokens])
    # By number, because two examples may be of one video.
    windows = predictor.encode_videos([(str(i), e.features, e.edges) for i, e in enumerate(examples)])
    windows_of: dict[int, list[int]] = {}
    for w, window in enumerate(windows):
        windows_of.setdefault(int(window.video_id), []).append(w)
    video_index = [i for i, e in enumerate(examples) for _ in e.queries]
    pairs = [(w, q) for q, video in enumerate(video_index) for w in windows_of[video]]
    spans: list[list[ScoredSpan]] = [[] for _ in video_index]
    ranked = predictor.rank(windows, queries, pairs, top_k, nms_iou)
    for (_, q), spans_of_window in zip(pairs, ranked, strict=True):
        spans[q] += spans_of_window
    return [nms(spans_of_query, nms_iou, top_k) for spans_of_query in spans]


def membership_curves(predictor: Predictor, example: Example) -> list[np.ndarray]:
    """For every query of the example the probability [T] that each frame belongs to the moment.

    An empty list if the predictor has no membership.
    """
    if not predictor.has_membership:
        return []
    queries = predictor.encode_tokens(example.tokens)
    windows = predictor.encode_videos([(example.video_id, example.features, example.edges)])
    return [np.concatenate(predictor.membership_of(windows, queries, q)) for q in range(len(example.tokens))]
