"""Spans over frames: their scores, decoding, non-maximum suppression. No Ray, no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vmr_ray.model.cross_interaction import Cells, Heads, SpanQuality

ScoredSpan = tuple[float, float, float]


# The membership logit that the best frame of a video counts with when its spans are compared.
PEAK = 2.0


def span_scores(heads: Heads, mask: Tensor) -> Tensor:
    """Scores of all spans of frames of one video against each other: [Q, T] heads -> [Q, T, T].

    score[q, s, e] = start[s] + stop[e] + sum over frames s..e (inclusive) of
    (membership - its maximum over the video + PEAK); -inf where e < s or an end is masked.
    A head that is off adds nothing.
    The membership is taken relative to the best frame because the spans of one video compete for a
    query that is about it: how sure the network is of the video must not make spans longer or shorter.
    """
    nothing = torch.zeros(mask.shape, device=mask.device)
    start = nothing if heads.start is None else heads.start
    stop = nothing if heads.stop is None else heads.stop
    if heads.membership is not None:
        relative = (heads.membership - peak(heads.membership, mask).unsqueeze(1) + PEAK) * mask
        total = relative.cumsum(1)
        start, stop = start - total + relative, stop + total
    start, stop = (x.masked_fill(~mask, float("-inf")) for x in (start, stop))
    frames = torch.arange(mask.shape[1], device=mask.device)
    return (start.unsqueeze(2) + stop.unsqueeze(1)).masked_fill_(frames[:, None] > frames, float("-inf"))


def peak(membership: Tensor, mask: Tensor) -> Tensor:
    """[Q] the highest membership logit: how sure the network is that the video shows the query."""
    return membership.masked_fill(~mask, float("-inf")).amax(1)


def decode_spans(
    heads: Heads,
    mask: Tensor,
    edges: Sequence[np.ndarray],
    top_k: int,
    nms: float,
    quality: SpanQuality | None = None,
    cores: Sequence[tuple[int, int]] | None = None,
) -> list[list[ScoredSpan]]:
    """The best spans of every query, best first.

    Args:
        heads: of Q queries on T frames.
        mask: [Q, T], True where a frame is real; real frames come first.
        edges: of every query's video, at least one more than its real frames, in seconds: frame i
            covers `[edges[i], edges[i + 1])`.
        top_k: spans a query at most.
        nms: IoU above which the lower-scored of two spans is dropped.
        quality: the head that knows the IoU of a span; its logarithm is added to the scores.
        cores: of every query's window, see `cores`; only spans with their middle there are told.

    Returns:
        For every query a list of (start second, stop second, score). The best span's score is its
        peak membership logit, comparable between videos and windows; the others follow at the
        distance of their span scores. Without a membership head it is the span score itself.
    """
    scores = span_scores(heads, mask).detach()
    T = mask.shape[1]
    if cores is not None and any(core != (0, len(at) - 1) for core, at in zip(cores, edges, strict=True)):
        low, high = torch.tensor(cores, device=mask.device).unbind(1)
        twice_middle = torch.arange(1, 2 * T, device=mask.device)  # of the span s..e at place s + e
        outside = (twice_middle < 2 * low.unsqueeze(1)) | (twice_middle >= 2 * high.unsqueeze(1))
        barred = torch.zeros(outside.shape, device=mask.device).masked_fill_(outside, float("-inf"))
        scores = scores.add_(barred.unfold(1, T, 1))  # a view: [q, s, e] is barred[q, s + e]
    # Before suppression a peak is a crowd of near-copies; 64 a wanted span leave room for all peaks.
    values, cells = _best(scores.flatten(1), 64 * top_k)
    if quality is not None and heads.fused is not None:
        values = values + logsigmoid(quality(heads.fused, cells // T, cells % T)).detach()
        values, order = values.sort(dim=1, descending=True)
        cells = cells.gather(1, order)
    values = _from_peak(values, heads, cells[:, :1] // T, cells[:, :1] % T)
    found = []
    for value, cell, edge in zip(values.cpu().numpy(), cells.cpu().numpy(), edges, strict=True):
        cell = cell[np.isfinite(value)]
        at = np.asarray(edge, dtype=np.float64)
        spans = np.stack([at[cell // T], at[cell % T + 1]], axis=1)
        keep = suppress(spans, value[: len(cell)], nms, top_k)
        found.append([(float(spans[i, 0]), float(spans[i, 1]), float(value[i])) for i in keep])
    return found


def _best(values: Tensor, count: int, block: int = 32) -> tuple[Tensor, Tensor]:
    """`values.topk(count, dim=1)` of values [Q, N], or all N; much faster where N is large.

    The highest `count` values lie in the `count` blocks with the highest maxima.
    """
    rows, total = values.shape
    blocks = total // block
    if blocks <= count or total % block:
        return values.topk(min(count, total), dim=1)
    tops = values.view(rows, blocks, block).amax(2).topk(count, dim=1, sorted=False).indices
    cells = (tops.unsqueeze(2) * block + torch.arange(block, device=values.device)).flatten(1)
    best, at = values.gather(1, cells).topk(count, dim=1)
    return best, cells.gather(1, at)


def decode_cells(
    cells: Cells,
    heads: Heads,
    mask: Tensor,
    edges: Sequence[np.ndarray],
    top_k: int,
    cores: Sequence[tuple[int, int]] | None = None,
    sigma: float = 0.5,
) -> list[list[ScoredSpan]]:
    """As `decode_spans`, from the cells of a pyramid, with soft-NMS instead of NMS."""
    count = min(64 * top_k, cells.score.shape[1])
    frames = mask.sum(1, keepdim=True)
    low, high = torch.zeros_like(frames), frames
    if cores is not None:
        low, high = torch.tensor(cores, device=mask.device).unsqueeze(2).unbind(1)
    # Of cells, the centre: the span that it regresses may lie anywhere, the cell's own place is exact.
    told = cells.mask & (cells.centre >= low) & (cells.centre < high)
    scores, order = cells.score.detach().masked_fill(~told, float("-inf")).topk(count, dim=1)
    begin = (cells.centre - cells.before).detach().gather(1, order).clamp_min(0)
    end = (cells.centre + cells.after).detach().gather(1, order).minimum(frames)
    kept = []
    for i, score in enumerate(logsigmoid(scores).cpu().numpy()):
        at = np.asarray(edges[i], dtype=np.float64)[: int(frames[i]) + 1]
        real = np.isfinite(score)
        ends = (x[i].cpu().numpy()[real] for x in (begin, end))
        spans = np.stack([np.interp(x, np.arange(len(at)), at) for x in ends], axis=1)
        kept.append(soft_suppress(spans, score[real], sigma, top_k))
    best = torch.tensor([[found[0][2]] for found in kept], device=mask.device)
    first = begin[:, :1].long().minimum(frames - 1)
    last = (end[:, :1].ceil().long() - 1).maximum(first)
    rise = (_from_peak(best, heads, first, last) - best).flatten().tolist()
    return [[(s, e, v + up) for s, e, v in found] for found, up in zip(kept, rise, strict=True)]


def _from_peak(values: Tensor, heads: Heads, first: Tensor, last: Tensor) -> Tensor:
    """Values [Q, K], best first, moved so that the best one is the peak membership of its frames.

    first and last [Q, 1]: the best span's frames (inclusive).
    """
    if heads.membership is None:
        return values
    at = torch.arange(heads.membership.shape[1], device=values.device)
    inside = (at >= first) & (at <= last)
    return values - values[:, :1] + peak(heads.membership, inside).detach().unsqueeze(1)


def soft_suppress(spans: np.ndarray, scores: np.ndarray, sigma: float, top_k: int) -> list[ScoredSpan]:
    """Gaussian soft-NMS (arXiv:1704.04503) of spans [N, 2] with log scores [N], best first.

    A span loses IoU^2 / sigma of its log score for each better one.
    """
    scores = scores.astype(np.float64)
    kept: list[ScoredSpan] = []
    while len(kept) < min(top_k, len(spans)):
        best = int(scores.argmax())
        kept.append((float(spans[best, 0]), float(spans[best, 1]), float(scores[best])))
        scores = scores - temporal_iou(spans, spans[best]) ** 2 / sigma
        scores[best] = -np.inf
    return kept


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
