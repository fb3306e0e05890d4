"""How a long video is cut into windows of frames, which window answers for which part of it, and how
neighbouring windows are joined to stretches for fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Window:
    """Up to `ModelConfig.window` frames of a video after the query-free tower.

    Attributes:
        first: the video's frame that the window begins with.
        edges: [T + 1] seconds; frame i covers `[edges[i], edges[i + 1])`.
        states: float16 [T, dim].
        core: the window's frames `[low, high)` that it answers for, see `window_cores`.
        vectors: float16 [T, dim], unit vectors. None in a stored window, because only the first stage of
            search needs them.
    """

    video_id: str
    first: int
    edges: np.ndarray
    states: np.ndarray
    core: tuple[int, int]
    vectors: np.ndarray | None = None


def cut_windows(n_frames: int, window: int, stride: int | None = None) -> list[tuple[int, int]]:
    """Cut a video into overlapping windows of frames, `[first, last)`; the last one ends with the video.

    `stride` defaults to half a window, so that a moment shorter than that is whole in one of them.
    """
    stride = stride or max(1, window // 2)
    if n_frames <= window:
        return [(0, n_frames)]
    firsts = [*range(0, n_frames - window, stride), n_frames - window]
    return [(first, first + window) for first in firsts]


def window_cores(bounds: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The part of each window, in its own frames, whose moments it answers for: `[low, high)`.

    The border between the cores of two windows lies in the middle of their overlap. A moment belongs to the
    window that has the moment's middle in its core, because a window that contains only a piece of the
    moment may give that piece as high a score.
    """
    borders = [(last + first) // 2 for (_, last), (first, _) in pairwise(bounds)]
    lows, highs = [bounds[0][0], *borders], [*borders, bounds[-1][1]]
    return [(low - first, high - first) for (first, _), low, high in zip(bounds, lows, highs, strict=True)]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring windows of a video as one stretch of frames, so that fusion computes no frame twice.

    Attributes:
        parts: for every window its index and its first frame in the stretch.
        states: float16 [T, dim].
    """

    parts: list[tuple[int, int]]
    states: np.ndarray


def join_windows(windows: Sequence[Window], max_frames: int = 1024) -> list[Stretch]:
    """Put every window into one stretch of at most `max_frames` frames (or of that one window).

    The state of a frame comes from the window that has the frame in its core, or, at either end of the
    stretch, from the window there.
    """
    chains: list[list[int]] = []  # indices of the windows of each stretch
    for i in sorted(range(len(windows)), key=lambda i: (windows[i].video_id, windows[i].first)):
        window = windows[i]
        if chains:
            begin, previous = windows[chains[-1][0]], windows[chains[-1][-1]]
            adjacent = (previous.video_id, previous.first + previous.core[1]) == (
                window.video_id,
                window.first + window.core[0],
            )
            if adjacent and window.first + len(window.states) - begin.first <= max_frames:
                chains[-1].append(i)
                continue
        chains.append([i])
    return [_stretch(chain, [windows[i] for i in chain]) for chain in chains]


def _stretch(indices: list[int], windows: list[Window]) -> Stretch:
    start, end = windows[0].first, windows[-1].first + len(windows[-1].states)
    borders = [w.first + w.core[0] for w in windows[1:]]
    lows, highs = [start, *borders], [*borders, end]
    states = np.concatenate(  # [T, dim]
        [w.states[low - w.first : high - w.first] for w, low, high in zip(windows, lows, highs, strict=True)]
    )
    return Stretch([(i, w.first - start) for i, w in zip(indices, windows, strict=True)], states)
