"""Training targets out of true seconds, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vmr_ray.config import LossConfig
from vmr_ray.model.cross_interaction import Heads
from vmr_ray.model.spans import span_scores
from vmr_ray.schema import Span


class Targets(NamedTuple):
    """What is true of every (query, video) pair; all zero if the query is not about the video."""

    membership: Tensor  # [Q, T] share of the frame's cell that true spans cover
    overlap: Tensor  # [Q, T, T] IoU of the cells s..e with the closest true span


class Contrast(NamedTuple):
    """Inputs of the contrastive loss; row i of every field belongs to query i."""

    queries: Tensor  # [Q, P] unit vectors
    moments: Tensor  # [Q, P] unit vectors of the true moments
    temperature: Tensor  # scalar
    video: Tensor  # [Q] which video
    text: Tensor  # [Q] which text: equal numbers, equal texts
    spans: Tensor  # [Q, 2] seconds, one true span


def targets(spans: Sequence[Sequence[Span]], edges: Tensor, mask: Tensor) -> Targets:
    """Targets in continuous time.

    Args:
        spans: the true spans of every pair in seconds; none marks a negative pair.
        edges: [Q, T + 1] seconds; frame i covers `[edges[i], edges[i + 1])`.
        mask: [Q, T]
    """
    most = max(1, *(len(s) for s in spans))
    # Padding spans are empty and end before every edge: they overlap with nothing.
    padded = [[*s, *[(-1e9, -1e9)] * (most - len(s))] for s in spans]
    begin, end = torch.tensor(padded, dtype=edges.dtype, device=edges.device).unbind(-1)  # [Q, S]
    left, right = edges[:, :-1], edges[:, 1:]

    def shared(left: Tensor, right: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        return (torch.minimum(right, end) - torch.maximum(left, begin)).clamp_min(0)

    covered = shared(left[:, None], right[:, None], begin[..., None], end[..., None]).sum(1)
    membership = (covered / (right - left).clamp_min(1e-6)).clamp_max(1) * mask
    overlap = torch.zeros(*mask.shape, mask.shape[1], dtype=edges.dtype, device=edges.device)
    for b, e in zip(begin.unbind(1), end.unbind(1), strict=True):
        b, e = b[:, None, None], e[:, None, None]
        both = shared(left[:, :, None], right[:, None], b, e)
        union = (right[:, None] - left[:, :, None]) + (e - b) - both
        overlap = torch.maximum(overlap, both / union.clamp_min(1e-6))
    pair_mask = mask[:, :, None] & mask[:, None]
    return Targets(membership, (overlap * pair_mask).triu())


def losses(
    heads: Heads, mask: Tensor, target: Targets, contrast: Contrast | None, config: LossConfig
) -> dict[str, Tensor]:
    """Named loss terms, unweighted, and their weighted sum under "total".

    heads and mask [Q, T]; pairs whose target is all zero are the negatives. `contrast` describes
    the positive pairs only.
    """
    positive = target.membership.sum(1) > 0
    terms = {"span": span_loss(heads, mask, target)[positive].mean()}
    bce = membership_loss(heads, mask, target)
    terms["membership"] = bce[positive].mean()
    if (~positive).any():
        terms["negatives"] = bce[~positive].mean()
    if contrast is not None:
        terms["contrast"] = contrast_loss(contrast)
    terms["total"] = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    return terms


def span_loss(heads: Heads, mask: Tensor, target: Targets, sharpness: float = 20.0) -> Tensor:
    """[Q] cross entropy between the softmax over all spans of a video and a soft target.

    The target is softmax(sharpness * IoU): it peaks at the best cells and forgives near misses.
    """
    log_p = span_scores(heads, mask).flatten(1).log_softmax(1)
    valid = log_p.isfinite()
    soft = (sharpness * target.overlap.flatten(1)).masked_fill(~valid, float("-inf")).softmax(1)
    return -(soft * log_p.masked_fill(~valid, 0)).sum(1)


def membership_loss(heads: Heads, mask: Tensor, target: Targets) -> Tensor:
    """[Q] binary cross entropy, averaged over the video's frames."""
    bce = binary_cross_entropy_with_logits(heads.membership, target.membership, reduction="none")
    return (bce * mask).sum(1) / mask.sum(1)


def contrast_loss(c: Contrast) -> Tensor:
    """Symmetric InfoNCE (arXiv:2103.00020) with several positives.

    A query and a moment match if they are of one video and overlap by more than half, or if the texts
    are equal; an overlap below that is neither match nor mismatch.
    """
    begin, end = c.spans.unbind(1)
    shared = (torch.minimum(end[:, None], end) - torch.maximum(begin[:, None], begin)).clamp_min(0)
    union = (end - begin)[:, None] + (end - begin) - shared
    iou = (shared / union.clamp_min(1e-6)) * (c.video[:, None] == c.video)
    match = (
        (iou > 0.5) | (c.text[:, None] == c.text) | torch.eye(len(iou), dtype=torch.bool, device=iou.device)
    )
    logits = (c.queries @ c.moments.T / c.temperature).masked_fill((iou > 0) & ~match, float("-inf"))
    share = match / match.sum(1, keepdim=True)

    def cross_entropy(logits: Tensor) -> Tensor:
        return -(share * logits.log_softmax(1).masked_fill(~match, 0)).sum(1).mean()

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2
