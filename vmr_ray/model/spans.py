"""Spans of frames: their scores, decoding, non-maximum suppression. No Ray, no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vmr_ray.model.cross_interaction import Heads, PyramidCells, SpanQuality

ScoredSpan = tuple[float, float, float]  # start second, end second, score


# The membership logit that the best frame of a video counts with when its spans are compared.
PEAK = 2.0
# Candidates per wanted span. Before suppression a peak is a crowd of near-copies, so room is left for others.
_CANDIDATES = 64


def span_scores(heads: Heads, mask: Tensor) -> Tensor:
    """Scores of all spans of frames of one video against each other: heads [Q, T] -> [Q, T, T].

    score[q, s, e] = start[s] + stop[e] + sum over frames s..e (inclusive) of
    (membership - its maximum over the video + PEAK); -inf where e < s or an end is masked.
    A head that is off adds nothing.
    The membership is taken relative to the best frame because the spans of one video compete for a
    query that is about it: how sure the network is of the video must not make spans longer or shorter.
    """
    nothing = torch.zeros(mask.shape, device=mask.device)  # [Q, T]
    start = nothing if heads.start is None else heads.start
    stop = nothing if heads.stop is None else heads.stop
    if heads.membership is not None:
        best = peak(heads.membership, mask).unsqueeze(1)  # [Q, 1]
        relative = (heads.membership - best + PEAK) * mask
        total = relative.cumsum(1)  # [Q, T]
        # The sum over s..e is total[e] - total[s - 1].
        start, stop = start - total + relative, stop + total
    start, stop = (x.masked_fill(~mask, float("-inf")) for x in (start, stop))
    frames = torch.arange(mask.shape[1], device=mask.device)  # [T]
    backwards = frames[:, None] > frames  # [T, T]
    return (start.unsqueeze(2) + stop.unsqueeze(1)).masked_fill_(backwards, float("-inf"))  # [Q, T, T]


def peak(membership: Tensor, mask: Tensor) -> Tensor:
    """[Q, T] -> [Q] the highest membership logit: how sure the network is that the video shows the query."""
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
        quality: the head that predicts the IoU of a span; the logarithm of its output is added to the scores.
        cores: of every query's window, see `window_cores`; only spans with their middle there are returned.

    Returns:
        For every query a list of (start second, end second, score). The best span's score is its
        peak membership logit, comparable between videos and windows; the others follow at the
        distance of their span scores. Without a membership head it is the span score itself.
    """
    scores = span_scores(heads, mask).detach()  # [Q, T, T]
    T = mask.shape[1]
    if cores is not None and any(core != (0, len(at) - 1) for core, at in zip(cores, edges, strict=True)):
        scores = scores.add_(_outside_cores(cores, T, mask.device))
    # `flat` counts the spans of a row: span s..e is number s * T + e.
    values, flat = _largest(scores.flatten(1), _CANDIDATES * top_k)  # [Q, K] both
    if quality is not None and heads.fused is not None:
        values = values + logsigmoid(quality(heads.fused, flat // T, flat % T)).detach()
        values, order = values.sort(dim=1, descending=True)
        flat = flat.gather(1, order)  # [Q, K]
    values = _from_peak(values, heads, flat[:, :1] // T, flat[:, :1] % T)
    decoded = []
    for value, index, edge in zip(values.cpu().numpy(), flat.cpu().numpy(), edges, strict=True):
        index = index[np.isfinite(value)]  # the finite ones come first
        seconds = np.asarray(edge, dtype=np.float64)
        spans = np.stack([seconds[index // T], seconds[index % T + 1]], axis=1)  # [K, 2]
        keep = suppress(spans, value[: len(index)], nms, top_k)
        decoded.append([(float(spans[i, 0]), float(spans[i, 1]), float(value[i])) for i in keep])
    return decoded


def _outside_cores(cores: Sequence[tuple[int, int]], T: int, device: torch.device) -> Tensor:
    """[Q, T, T]: -inf for the spans s..e whose middle lies outside the row's core, else 0."""
    low, high = torch.tensor(cores, device=device).unbind(1)  # [Q] both
    # The middle depends on s + e only: twice the middle of span s..e is s + e + 1.
    twice_middle = torch.arange(1, 2 * T, device=device)  # [2T - 1]
    outside = (twice_middle < 2 * low.unsqueeze(1)) | (twice_middle >= 2 * high.unsqueeze(1))  # [Q, 2T - 1]
    barred = torch.zeros(outside.shape, device=device).masked_fill_(outside, float("-inf"))
    return barred.unfold(1, T, 1)  # [Q, T, T], a view: [q, s, e] is barred[q, s + e]


def _largest(values: Tensor, count: int, block: int = 32) -> tuple[Tensor, Tensor]:
    """`values.topk(count, dim=1)` of values [Q, n], or all n; much faster where n is large.

    The highest `count` values lie in the `count` blocks with the highest maxima.
    """
    rows, total = values.shape
    blocks = total // block
    if blocks <= count or total % block:
        return values.topk(min(count, total), dim=1)
    maxima = values.view(rows, blocks, block).amax(2)  # [Q, blocks]
    chosen = maxima.topk(count, dim=1, sorted=False).indices  # [Q, count]
    index = chosen.unsqueeze(2) * block + torch.arange(block, device=values.device)  # [Q, count, block]
    index = index.flatten(1)  # [Q, count * block]
    largest, at = values.gather(1, index).topk(count, dim=1)  # [Q, count] both
    return largest, index.gather(1, at)


def decode_pyramid(
    cells: PyramidCells,
    heads: Heads,
    mask: Tensor,
    edges: Sequence[np.ndarray],
    top_k: int,
    cores: Sequence[tuple[int, int]] | None = None,
    sigma: float = 0.5,
) -> list[list[ScoredSpan]]:
    """Like `decode_spans`, from the cells of a pyramid, with soft-NMS instead of NMS.

    A cell counts if its centre lies in the core. The span that the cell regresses may lie anywhere, but the
    centre is exact.
    """
    # The best cells of every pair and their spans, counted in frames.
    count = min(_CANDIDATES * top_k, cells.score.shape[1])
    frames = mask.sum(1, keepdim=True)  # [Q, 1]
    low, high = torch.zeros_like(frames), frames  # [Q, 1] both
    if cores is not None:
        low, high = torch.tensor(cores, device=mask.device).unsqueeze(2).unbind(1)  # [Q, 1] both
    in_core = cells.mask & (cells.centre >= low) & (cells.centre < high)  # [Q, N]
    scores, order = (
        cells.score.detach().masked_fill(~in_core, float("-inf")).topk(count, dim=1)
    )  # [Q, K] both
    begin = (cells.centre - cells.before).detach().gather(1, order).clamp_min(0)  # [Q, K]
    end = (cells.centre + cells.after).detach().gather(1, order).minimum(frames)  # [Q, K]

    # In seconds, without near-copies.
    decoded = []
    for i, score in enumerate(logsigmoid(scores).cpu().numpy()):
        seconds = np.asarray(edges[i], dtype=np.float64)[: int(frames[i]) + 1]
        real = np.isfinite(score)
        ends = (x[i].cpu().numpy()[real] for x in (begin, end))
        spans = np.stack([np.interp(x, np.arange(len(seconds)), seconds) for x in ends], axis=1)  # [K, 2]
        decoded.append(soft_suppress(spans, score[real], sigma, top_k))

    # Scores that are comparable between videos.
    best = torch.tensor([[spans_of_pair[0][2]] for spans_of_pair in decoded], device=mask.device)  # [Q, 1]
    first = begin[:, :1].long().minimum(frames - 1)  # [Q, 1]
    last = (end[:, :1].ceil().long() - 1).maximum(first)  # [Q, 1]
    raised = (_from_peak(best, heads, first, last) - best).flatten().tolist()  # [Q]
    return [[(s, e, v + up) for s, e, v in spans] for spans, up in zip(decoded, raised, strict=True)]


def _from_peak(values: Tensor, heads: Heads, first: Tensor, last: Tensor) -> Tensor:
    """Values [Q, K], best first, shifted so that the best one is the peak membership of its frames.

    first and last [Q, 1]: the best span's frames (inclusive).
    """
    if heads.membership is None:
        return values
    at = torch.arange(heads.membership.shape[1], device=values.device)  # [T]
    inside = (at >= first) & (at <= last)  # [Q, T]
    return values - values[:, :1] + peak(heads.membership, inside).detach().unsqueeze(1)  # [Q, K]


def soft_suppress(spans: np.ndarray, scores: np.ndarray, sigma: float, top_k: int) -> list[ScoredSpan]:
    """Gaussian soft-NMS (arXiv:1704.04503) of spans [n, 2] with log scores [n], best first.

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
    """Non-maximum suppression of spans [n, 2] with scores [n]: the indices of the kept ones, best first.

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
    """Non-maximum suppression over the spans of several windows of one video, best first."""
    if not spans:
        return []
    table = np.asarray(spans, dtype=np.float64)  # [n, 3]
    return [spans[i] for i in suppress(table[:, :2], table[:, 2], iou, top_k)]


def temporal_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Continuous IoU of spans [..., 2] in seconds, broadcast; 0 for two empty spans."""
    shared = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    shared = np.maximum(shared, 0.0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
