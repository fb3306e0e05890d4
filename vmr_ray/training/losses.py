"""Training targets out of true seconds, and the losses. Shapes: see `vmr_ray/model/__init__.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vmr_ray.config import LossConfig
from vmr_ray.model.cross_interaction import Heads, PyramidCells, SpanQuality
from vmr_ray.model.spans import span_scores
from vmr_ray.schema import Span


class Targets(NamedTuple):
    """The truth about every pair of a query and a video; all zero if the query is not about the video."""

    membership: Tensor  # [Q, T] share of the frame's interval that true spans cover
    overlap: Tensor  # [Q, T, T] IoU of the span of frames s..e with the closest true span
    spans: Tensor  # [Q, S, 2] true spans counted in frames; empty ones far outside are padding


class Contrast(NamedTuple):
    """Inputs of the contrastive loss; row i of every field belongs to query i of A."""

    queries: Tensor  # [A, dim] unit vectors
    moments: Tensor  # [A, dim] unit vectors of the true moments
    temperature: Tensor  # scalar
    video: Tensor  # [A] number of the query's video
    text: Tensor  # [A] number of the query's text: equal numbers, equal texts
    spans: Tensor  # [A, 2] seconds, one true span


def targets(spans: Sequence[Sequence[Span]], edges: Tensor, mask: Tensor) -> Targets:
    """Targets in continuous time.

    Args:
        spans: the true spans of every pair in seconds; none marks a negative pair.
        edges: [Q, T + 1] seconds; frame i covers `[edges[i], edges[i + 1])`.
        mask: [Q, T]
    """
    max_spans = max(1, *(len(s) for s in spans))
    # Padding spans are empty and end before every edge: they overlap with nothing.
    padded = [[*s, *[(-1e9, -1e9)] * (max_spans - len(s))] for s in spans]
    begin, end = torch.tensor(padded, dtype=edges.dtype, device=edges.device).unbind(-1)  # [Q, S] both
    left, right = edges[:, :-1], edges[:, 1:]  # [Q, T] both

    # Membership: seconds of the frame's interval inside true spans, as a share.
    covered = _intersection(left[:, None], right[:, None], begin[..., None], end[..., None])  # [Q, S, T]
    membership = (covered.sum(1) / (right - left).clamp_min(1e-6)).clamp_max(1) * mask  # [Q, T]

    # Overlap: IoU of all spans of frames with one true span after the other.
    overlap = torch.zeros(*mask.shape, mask.shape[1], dtype=edges.dtype, device=edges.device)  # [Q, T, T]
    for b, e in zip(begin.unbind(1), end.unbind(1), strict=True):
        b, e = b[:, None, None], e[:, None, None]  # [Q, 1, 1] both
        intersection = _intersection(left[:, :, None], right[:, None], b, e)  # [Q, T, T]
        union = (right[:, None] - left[:, :, None]) + (e - b) - intersection  # [Q, T, T]
        overlap = torch.maximum(overlap, intersection / union.clamp_min(1e-6))
    pair_mask = mask[:, :, None] & mask[:, None]  # [Q, T, T]

    # Spans counted in frames.
    padding = begin < left.amin() - 1e8  # [Q, S]
    frames = [_in_frames(x, edges).masked_fill(padding, -1e9) for x in (begin, end)]
    return Targets(membership, (overlap * pair_mask).triu(), torch.stack(frames, dim=-1))  # spans [Q, S, 2]


def _intersection(left: Tensor, right: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """The length of `[left, right)` inside `[begin, end)`, broadcast."""
    return (torch.minimum(right, end) - torch.maximum(left, begin)).clamp_min(0)


def _in_frames(seconds: Tensor, edges: Tensor) -> Tensor:
    """seconds [Q, S] and edges [Q, T + 1] -> positions counted in frames [Q, S]"""
    frame = torch.searchsorted(edges.contiguous(), seconds.contiguous()) - 1  # [Q, S]
    frame = frame.clamp(0, edges.shape[1] - 2)
    left, right = edges.gather(1, frame), edges.gather(1, frame + 1)  # [Q, S] both
    return frame + ((seconds - left) / (right - left).clamp_min(1e-6)).clamp(0, 1)


def losses(
    heads: Heads,
    mask: Tensor,
    target: Targets,
    contrast: Contrast | None,
    config: LossConfig,
    quality: SpanQuality | None = None,
) -> dict[str, Tensor]:
    """Unweighted loss terms by the name of their weight in `LossConfig`, and the weighted sum as "total".

    heads and mask [Q, T]; pairs whose target is all zero are the negative ones. `contrast` describes
    positive pairs only. A head that is off, or a weight of 0, has no term.
    """
    positive = target.membership.sum(1) > 0  # [Q]
    terms = {}
    if heads.start is not None and config.span:
        terms["span"] = span_loss(heads, mask, target)[positive].mean()  # the mean of [Q] losses, as below
    if heads.membership is not None:
        bce = membership_loss(heads.membership, mask, target)
        terms["membership"] = bce[positive].mean()
        if (~positive).any():
            terms["negatives"] = bce[~positive].mean()
        if config.saliency:
            terms["saliency"] = frame_contrast_loss(heads.membership, mask, target)[positive].mean()
    if quality is not None:
        terms["quality"] = quality_loss(quality, heads, mask, target)[positive].mean()
    if heads.cells is not None:
        terms["pyramid"] = pyramid_loss(heads.cells, target)
    if contrast is not None:
        terms["contrast"] = contrast_loss(contrast)
    terms["total"] = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    return terms


def span_loss(heads: Heads, mask: Tensor, target: Targets, sharpness: float = 20.0) -> Tensor:
    """[Q] cross entropy between the softmax over all spans of a video and a soft target.

    The target is softmax(sharpness * IoU): it peaks at the best spans and forgives near misses.
    """
    log_p = span_scores(heads, mask).flatten(1).log_softmax(1)  # [Q, T * T]
    valid = log_p.isfinite()
    logits = sharpness * target.overlap.flatten(1)  # [Q, T * T]
    soft = logits.masked_fill(~valid, float("-inf")).softmax(1)
    return -(soft * log_p.masked_fill(~valid, 0)).sum(1)  # [Q]


def membership_loss(membership: Tensor, mask: Tensor, target: Targets) -> Tensor:
    """[Q] binary cross entropy, averaged over the video's frames."""
    bce = binary_cross_entropy_with_logits(membership, target.membership, reduction="none")
    return (bce * mask).sum(1) / mask.sum(1)  # [Q, T] -> [Q]


def frame_contrast_loss(membership: Tensor, mask: Tensor, target: Targets) -> Tensor:
    """[Q] contrast of the frames of one video: minus the log share of their softmax inside the moment.

    The term is called saliency, like its weight in the config.
    """
    logits = membership.masked_fill(~mask, float("-inf"))  # [Q, T]
    inside = (logits + target.membership.clamp_min(1e-9).log()).logsumexp(1)  # [Q]
    return logits.logsumexp(1) - inside  # [Q]


def quality_loss(quality: SpanQuality, heads: Heads, mask: Tensor, target: Targets, spans: int = 8) -> Tensor:
    """[Q] binary cross entropy to the IoU of the best-scored spans and as many random ones."""
    T = mask.shape[1]
    # Span s..e is number s * T + e of the flat scores.
    scores = span_scores(heads, mask).detach().flatten(1)  # [Q, T * T]
    best = scores.topk(min(spans, T * T), dim=1).indices  # [Q, K / 2]
    noise = torch.rand_like(scores).masked_fill(~scores.isfinite(), -1)  # [Q, T * T]
    drawn = noise.topk(best.shape[1], dim=1).indices  # [Q, K / 2]
    flat = torch.cat([best, drawn], dim=1)  # [Q, K]
    real = scores.gather(1, flat).isfinite()  # [Q, K]
    assert heads.fused is not None
    logits = quality(heads.fused, flat // T, flat % T)  # [Q, K]
    truth = target.overlap.flatten(1).gather(1, flat)  # [Q, K]
    bce = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (bce * real).sum(1) / real.sum(1)  # [Q]


def pyramid_loss(cells: PyramidCells, target: Targets, gamma: float = 2.0) -> Tensor:
    """Focal loss of the cells' scores plus DIoU loss (arXiv:1911.08287) of the positive cells' spans.

    A cell is positive if it lies at the middle of a true span whose ends are as far away as its level
    is made for (2 to 4 strides; the lowest and the highest level take all that is shorter and longer).
    """
    # Which cells are positive, and for which true span.
    begin, end = (x.unsqueeze(2) for x in target.spans.unbind(-1))  # [Q, S, 1] both
    reach = torch.maximum(cells.centre - begin, end - cells.centre) / cells.stride  # [Q, S, N]
    lowest, highest = cells.stride == cells.stride[0], cells.stride == cells.stride[-1]  # [N] both
    fits = (lowest | (reach >= 2)) & (highest | (reach < 4))  # [Q, S, N]
    near_middle = ((begin + end) / 2 - cells.centre).abs() <= 1.5 * cells.stride  # [Q, S, N]
    inside = (begin <= cells.centre) & (cells.centre < end)  # [Q, S, N]
    match = inside & near_middle & fits & cells.mask.unsqueeze(1)  # [Q, S, N]
    positive, which = match.any(1), match.float().argmax(1)  # [Q, N] both
    count = positive.sum().clamp_min(1)

    # Focal loss of all cells.
    truth = positive.to(cells.score.dtype)
    bce = binary_cross_entropy_with_logits(cells.score, truth, reduction="none")
    p = cells.score.sigmoid()
    focal = (bce * (truth - p).abs() ** gamma * cells.mask).sum() / count

    # DIoU loss of the P positive cells: true span [s, e), predicted span [s_hat, e_hat).
    s, e = (x.squeeze(2).gather(1, which)[positive] for x in (begin, end))  # [P] both
    centre = cells.centre.expand_as(cells.score)[positive]  # [P]
    s_hat, e_hat = centre - cells.before[positive], centre + cells.after[positive]  # [P] both
    intersection = _intersection(s, e, s_hat, e_hat)
    hull = (torch.maximum(e, e_hat) - torch.minimum(s, s_hat)).clamp_min(1e-6)
    iou = intersection / ((e - s) + (e_hat - s_hat) - intersection).clamp_min(1e-6)
    distance = ((s + e - s_hat - e_hat) / 2 / hull) ** 2
    return focal + (1 - iou + distance).sum() / count


def contrast_loss(c: Contrast) -> Tensor:
    """Symmetric InfoNCE (arXiv:2103.00020) with several positives.

    A query and a moment match if they are of one video and overlap by more than half, or if the texts
    are equal; an overlap below that is neither match nor mismatch.
    """
    begin, end = c.spans.unbind(1)  # [A] both
    intersection = _intersection(begin[:, None], end[:, None], begin, end)  # [A, A]
    union = (end - begin)[:, None] + (end - begin) - intersection  # [A, A]
    same_video, same_text = c.video[:, None] == c.video, c.text[:, None] == c.text  # [A, A] both
    iou = (intersection / union.clamp_min(1e-6)) * same_video
    match = (iou > 0.5) | same_text | torch.eye(len(iou), dtype=torch.bool, device=iou.device)  # [A, A]
    logits = c.queries @ c.moments.T / c.temperature  # [A, A]: a query a row, a moment a column
    logits = logits.masked_fill((iou > 0) & ~match, float("-inf"))
    share = match / match.sum(1, keepdim=True)  # [A, A]

    def cross_entropy(logits: Tensor) -> Tensor:
        return -(share * logits.log_softmax(1).masked_fill(~match, 0)).sum(1).mean()

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2
