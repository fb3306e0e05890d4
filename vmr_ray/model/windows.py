"""How a long video is cut into windows of frames, and which window answers for which part of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def windows(n_frames: int, window: int, stride: int | None = None) -> list[tuple[int, int]]:
    """Cut a video into overlapping windows of frames, [first, last); the last one ends with the video.

    `stride` defaults to half a window, so that a moment shorter than that is whole in one of them.
    """
    stride = stride or max(1, window // 2)
    if n_frames <= window:
        return [(0, n_frames)]
    firsts = [*range(0, n_frames - window, stride), n_frames - window]
    return [(first, first + window) for first in firsts]


def cores(cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The part of each window, in its own frames, whose moments it answers for: [low, high).

    A border between two windows' cores lies in the middle of their overlap. A moment belongs to the window
    that has the moment's middle in its core; others may see only a piece of it, which looks as good.
    """
    borders = [(last + first) // 2 for (_, last), (first, _) in pairwise(cuts)]
    lows, highs = [cuts[0][0], *borders], [*borders, cuts[-1][1]]
    return [(low - first, high - first) for (first, _), low, high in zip(cuts, lows, highs, strict=True)]
