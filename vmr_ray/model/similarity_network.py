"""The heads of a dual encoder: its similarity of frames and sentence, and a small network around it.

The network sees the similarity of every frame and how the picture changes, but neither the frames nor the
sentence: what it learns about boundaries holds for words that it was not trained on. It begins as a residual,
so before the first step its heads are those of the similarity alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from vmr_ray.model.cross_interaction import Heads
from vmr_ray.model.spans import PEAK, peak

if TYPE_CHECKING:
    from vmr_ray.model.checkpoint import Similarity

# In windows of several shots: what it costs a span to cross a cut, and the factor of the contrast. With a
# higher contrast fewer frames count as the moment's.
_CUT_COST = 2.5 * PEAK
_SHOTS_CONTRAST = 1.25
# Of the correction: it is learned with made-up queries, which fit their moment more evenly than sentences do.
_SHARE = 0.65
_WIDTH = 32
_LAGS = (1, 2, 3)  # frames between which the change of the picture is an input
_INPUTS = 3 + 2 * len(_LAGS) + 2


class SimilarityNetwork(nn.Module):
    """Frames and sentences of a dual encoder -> heads."""

    def __init__(self, similarity: Similarity) -> None:
        super().__init__()
        self.similarity = similarity
        self.residual = Residual() if similarity.refined is not None else None

    def forward(self, frames: Tensor, mask: Tensor, sentences: Tensor) -> tuple[Heads, Tensor]:
        """frames [Q, T, dim] and sentences [Q, dim], unit vectors; mask [Q, T] -> heads and logits [Q, T].

        The logits compare windows; the heads place a span within its window.
        """
        cosine = (frames @ sentences.unsqueeze(2)).squeeze(2)  # [Q, T]
        looks = frames
        shots = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)  # [Q, T]
        if self.similarity.shots is not None:
            first, change = self.similarity.shots
            looks = normalize(frames[..., first:], dim=-1)  # [Q, T, looks]
            shots[:, 1:] = (looks[:, 1:] * looks[:, :-1]).sum(2) < 1 - change
            shots = shots.cumsum(1)
        logits = self.similarity.scale * smoothed(cosine, mask, shots) + self.similarity.bias
        together = _together(mask, shots)  # [Q, T, T]
        heads = similarity_heads(logits, mask, shots, together)
        if self.residual is not None:
            heads = self.residual(heads, cosine, looks, mask, together)
        return heads, logits


class Residual(nn.Module):
    """What the network adds to the heads of the similarity; nothing before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(_INPUTS, _WIDTH, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(Block(_WIDTH, dilation) for dilation in (1, 2, 4))
        self.norm = nn.LayerNorm(_WIDTH)
        self.boundary = nn.Conv1d(_WIDTH, 2, kernel_size=1)
        # Of the cost of a cut, the contrast, and the mean over the shot.
        self.gains = nn.Parameter(torch.zeros(3))
        nn.init.zeros_(self.boundary.weight)
        assert self.boundary.bias is not None
        nn.init.zeros_(self.boundary.bias)

    def forward(self, heads: Heads, cosine: Tensor, looks: Tensor, mask: Tensor, together: Tensor) -> Heads:
        """heads, cosine and mask [Q, T], looks [Q, T, n], together [Q, T, T] -> heads [Q, T]"""
        assert heads.start is not None and heads.stop is not None and heads.membership is not None
        share = 1.0 if self.training else _SHARE
        relative = _standardised(cosine, mask) / 2  # [Q, T]
        of_shot = _shot_means(relative, together) * mask  # [Q, T]
        contrast = heads.membership / (2 * PEAK) * mask  # [Q, T]
        inputs = torch.stack([*_changes(looks, mask), *_ends(mask), contrast, relative, of_shot], 1)
        real = mask.unsqueeze(1).to(inputs.dtype)  # [Q, 1, T]
        x = self.first(inputs) * real  # [Q, width, T]
        for block in self.blocks:
            x = block(x, real)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        start, stop = (share * self.boundary(x) * real).unbind(1)  # [Q, T] both
        cut, contrasted, shot = share * self.gains
        return Heads(
            (1 + cut) * heads.start + start,
            (1 + cut) * heads.stop + stop,
            (1 + contrasted) * heads.membership + 2 * PEAK * shot * of_shot,
        )


class Block(nn.Module):
    """A dilated convolution over neighbouring frames, added to its input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, kernel_size=5, padding=2 * dilation, dilation=dilation)
        self.out = nn.Conv1d(width, width, kernel_size=1)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x [Q, width, T], real [Q, 1, T] -> [Q, width, T]"""
        y = self.norm(x.transpose(1, 2)).transpose(1, 2) * real
        return x + self.out(gelu(self.mix(y)))


def smoothed(cosine: Tensor, mask: Tensor, shots: Tensor) -> Tensor:
    """Cosines [Q, T], averaged over neighbours of the same shot, because one frame alone is noisy.

    At either end of a shot a frame is its own neighbour. The padding counts as a shot.
    """
    number = torch.where(mask, shots, -1)  # [Q, T]
    same = number[:, 1:] == number[:, :-1]  # [Q, T - 1]
    before, after = cosine.clone(), cosine.clone()
    before[:, 1:] = torch.where(same, cosine[:, :-1], cosine[:, 1:])
    after[:, :-1] = torch.where(same, cosine[:, 1:], cosine[:, :-1])
    return (before + 2 * cosine + after) / 4


def similarity_heads(logits: Tensor, mask: Tensor, shots: Tensor, together: Tensor) -> Heads:
    """What places a span within its window: the logits' contrast, and the shots, all [Q, T] but the last.

    In a window of several shots a span pays for every cut that it crosses, and a frame counts half with its
    own logit and half with its shot's.
    """
    of_shot = _shot_means(logits, together)  # [Q, T]
    contrast = contrasted((logits + of_shot) / 2, mask)  # [Q, T]
    several = (shots * mask).amax(1, keepdim=True) > 0  # [Q, 1]
    crossed = _CUT_COST * shots.float()  # [Q, T]
    return Heads(crossed, -crossed, torch.where(several, _SHOTS_CONTRAST * contrast, contrast))


def contrasted(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits [Q, T], shifted and scaled to 0 at the row's lower quartile and 2 * PEAK at its best frame.

    Frames above the middle of the two count as the moment's. The scale is the row's own, because encoders
    give a fitting frame a logit that is only a little higher, and how much differs from query to query.
    """
    best = peak(logits, mask).unsqueeze(1)  # [Q, 1]
    low = logits.masked_fill(~mask, float("nan")).nanquantile(0.25, dim=1, keepdim=True)  # [Q, 1]
    return (logits - low) / (best - low).clamp_min(1e-6) * 2 * PEAK


def _together(mask: Tensor, shots: Tensor) -> Tensor:
    """mask and shots [Q, T] -> [Q, T, T]: 1 where two frames are of one shot; the padding is a shot."""
    number = torch.where(mask, shots, -1)  # [Q, T]
    return (number.unsqueeze(2) == number.unsqueeze(1)).float()


def _shot_means(values: Tensor, together: Tensor) -> Tensor:
    """values [Q, T], averaged over the frames of the same shot, see `_together` [Q, T, T]"""
    return (together @ values.unsqueeze(2)).squeeze(2) / together.sum(2)


def _standardised(values: Tensor, mask: Tensor) -> Tensor:
    """values [Q, T] -> mean 0 and spread 1 over the real frames of every row, 0 where masked"""
    count = mask.sum(1, keepdim=True).clamp_min(1)  # [Q, 1]
    centred = (values - (values * mask).sum(1, keepdim=True) / count) * mask  # [Q, T]
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()  # [Q, 1]
    return centred / spread.clamp_min(1e-4)


def _changes(looks: Tensor, mask: Tensor) -> list[Tensor]:
    """How much a frame differs from the one `lag` frames before and after: [Q, T] each"""
    changes = []
    for lag in _LAGS:
        before, after = (torch.zeros(mask.shape, device=mask.device) for _ in range(2))  # [Q, T] both
        if mask.shape[1] > lag:
            change = 1 - (looks[:, lag:] * looks[:, :-lag]).sum(2)  # [Q, T - lag]
            before[:, lag:] = after[:, :-lag] = change * mask[:, lag:]
        changes += [before, after]
    return changes


def _ends(mask: Tensor) -> tuple[Tensor, Tensor]:
    """1 at the first frame and 1 at the last real one, [Q, T] both"""
    first, last = torch.zeros(mask.shape, device=mask.device), torch.zeros(mask.shape, device=mask.device)
    first[:, 0] = 1
    last[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] = 1
    return first, last
