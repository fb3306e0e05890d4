"""Spans over frames: their scores, decoding, non-maximum suppression, windows. No Ray, no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vmr_ray.model.cross_interaction import Heads

ScoredSpan = tuple[float, float, float]


# The membership logit that the best frame of a video counts with when its spans are compared.
PEAK = 2.0


def span_scores(heads: Heads, mask: Tensor) -> Tensor:
    """Scores of all spans of frames of one video against each other: [Q, T] heads -> [Q, T, T].

    score[q, s, e] = start[s] + stop[e] + sum over frames s..e (inclusive) of
    (membership - its maximum over the video + PEAK); -inf where e < s or an end is masked.
    The membership is taken relative to the best frame because the spans of one video compete for a
    query that is about it: how sure the network is of the video must not make spans longer or shorter.
    """
    relative = (heads.membership - peak(heads, mask).unsqueeze(1) + PEAK) * mask
    total = relative.cumsum(1)
    score = (heads.start - total + relative).unsqueeze(2) + (heads.stop + total).unsqueeze(1)
    frames = torch.arange(mask.shape[1], device=mask.device)
    valid = (frames[:, None] <= frames) & mask.unsqueeze(2) & mask.unsqueeze(1)
    return score.masked_fill(~valid, float("-inf"))


def peak(heads: Heads, mask: Tensor) -> Tensor:
    """[Q] the highest membership logit: how sure the network is that the video shows the query."""
    return heads.membership.masked_fill(~mask, float("-inf")).amax(1)


def decode_spans(
    heads: Heads, mask: Tensor, edges: Sequence[Sequence[float]], top_k: int, nms: float
) -> list[list[ScoredSpan]]:
    """The best spans of every query, best first.

    Args:
        heads: logits, each [Q, T].
        mask: [Q, T], True where a frame is real; real frames come first.
        edges: of every query's video, at least one more than its real frames, in seconds: frame i
            covers `[edges[i], edges[i + 1])`.
        top_k: spans a query at most.
        nms: IoU above which the lower-scored of two spans is dropped.

    Returns:
        For every query a list of (start second, stop second, score). The best span's score is the
        peak membership logit, comparable between videos and windows; the others follow at the
        distance of their span scores.
    """
    scores = span_scores(heads, mask).detach()
    T = mask.shape[1]
    # Before suppression a peak is a crowd of near-copies; 64 a wanted span leave room for all peaks.
    values, cells = scores.flatten(1).topk(min(64 * top_k, T * T), dim=1)
    values = values - values[:, :1] + peak(heads, mask).detach().unsqueeze(1)
    found = []
    for value, cell, edge in zip(values.cpu().numpy(), cells.cpu().numpy(), edges, strict=True):
        cell = cell[np.isfinite(value)]
        at = np.asarray(edge, dtype=np.float64)
        spans = np.stack([at[cell // T], at[cell % T + 1]], axis=1)
        keep = suppress(spans, value[: len(cell)], nms, top_k)
        found.append([(float(spans[i, 0]), float(spans[i, 1]), float(value[i])) for i in keep])
    return found


def suppress(spans: np.ndarray, scores: np.ndarray, iou: float, top_k: int | None = None) -> list[int]:
    """Non-maximum suppression: the indices of the kept spans [N, 2], best first.

    A span is dropped if its IoU with a better kept one is above `iou`.
    """
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while len(order) and (top_k is None or len(keep) < top_k):
        best, order = order[0], order[1:]
        keep.append(int(best))
        order = order[temporal_iou(spans[order], spans[best]) <= iou]
    return keep


def nms(spans: Sequence[ScoredSpan], iou: float, top_k: int | None = None) -> list[ScoredSpan]:
    """Merge the spans of several windows of one video: the kept (start, stop, score), best first."""
    if not spans:
        return []
    table = np.asarray(spans, dtype=np.float64)
    return [spans[i] for i in suppress(table[:, :2], table[:, 2], iou, top_k)]


def temporal_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Continuous IoU of spans [..., 2] in seconds, broadcast; 0 for two empty spans."""
    shared = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    shared = np.maximum(shared, 0.0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def windows(n_frames: int, window: int, stride: int | None = None) -> list[tuple[int, int]]:
    """Cut a video into overlapping windows of frames, [first, last); the last one ends with the video.

    `stride` defaults to half a window, so that a moment shorter than that is whole in one of them.
    """
    stride = stride or max(1, window // 2)
    if n_frames <= window:
        return [(0, n_frames)]
    firsts = [*range(0, n_frames - window, stride), n_frames - window]
    return [(first, first + window) for first in firsts]
