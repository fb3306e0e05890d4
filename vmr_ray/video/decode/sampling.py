"""Which frames of a video are sampled, and the time that each of them stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_REST = 0.1  # sampling steps; a shorter rest of the video gets no sample of its own
# Seconds; a frame that begins this little after a sampling instant counts as on screen. At 29.97 frames per
# second whole seconds fall just before a key frame, and to decode the frame before it can cost a whole GOP.
_SNAP = 0.017
# A still picture may be sampled many times, but a header alone must not cause days of work.
_MAX_SAMPLES, _MAX_SAMPLES_PER_FRAME = 10_000, 100
_STILL = 0.04  # seconds; the length of a single frame whose file does not declare it


@dataclass(frozen=True)
class SamplePlan:
    """Sampled frames of one video.

    Attributes:
        indices: int64 [n], frame numbers in presentation order, never decreasing.
        times: float64 [n], the frames' presentation timestamps in seconds.
        edges: float64 [n + 1], frame i stands for `[edges[i], edges[i + 1])` seconds.
    """

    indices: NDArray[np.int64]
    times: NDArray[np.float64]
    edges: NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """`fps=<x>`: x frames per second; `every=<n>`: every n-th frame; `keyframes`: the key frames."""

    kind: Literal["fps", "every", "keyframes"]
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Sampling:
        """Read `fps=1`, `fps=0.5`, `every=30` or `keyframes`.

        Raises:
            ValueError: anything else.
        """
        kind, _, number = text.strip().partition("=")
        if text.strip() == "keyframes":
            return cls("keyframes")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind == "fps" and 0 < value < math.inf:
            return cls("fps", value)
        if kind == "every" and value >= 1 and value.is_integer():
            return cls("every", value)
        raise ValueError(
            f"sampling {text!r} is not understood; write fps=<frames a second, above 0>, "
            "every=<whole number of frames, at least 1> or keyframes"
        )

    def plan(self, starts: ArrayLike, ends: ArrayLike, key_indices: ArrayLike) -> SamplePlan:
        """Choose frames.

        `fps=x` takes the frame on screen every 1/x seconds, beginning with the first frame. It stands for
        the times that are nearer to its sampling instant than to any other. With `every` and `keyframes` a
        frame stands for the time until the next sampled one. The last edge is the end of the video.

        Args:
            starts, ends: [N] seconds, N >= 1, all frames in presentation order. Only the last of
                `ends` is used; if it is not after its start, the last frame lasts the median frame gap.
            key_indices: [K] frame numbers of the key frames.

        Raises:
            ValueError: few frames claim to last far too long.
        """
        starts = np.asarray(starts, np.float64)
        end = float(np.asarray(ends, np.float64)[-1])
        if not end > starts[-1]:
            end = starts[-1] + (float(np.median(np.diff(starts))) if len(starts) > 1 else _STILL)
        if self.kind == "fps":
            count = max(1, math.ceil((end - starts[0]) * self.value - _REST))
            if count > max(_MAX_SAMPLES, _MAX_SAMPLES_PER_FRAME * len(starts)):
                raise ValueError(
                    f"its {len(starts)} frames claim to last {end - starts[0]:.0f} s, which would be "
                    f"{count} samples: fix its header, or sample by every=<n> or keyframes"
                )
            instants = starts[0] + np.arange(count) / self.value
            snap = min(_SNAP, 0.25 / self.value)
            indices = np.searchsorted(starts, instants + snap, side="right") - 1
            edges = np.concatenate([starts[:1], (instants[:-1] + instants[1:]) / 2, [end]])
            return SamplePlan(indices.astype(np.int64), starts[indices], edges)
        if self.kind == "every":
            indices = np.arange(0, len(starts), int(self.value))
        else:
            indices = np.unique(np.asarray(key_indices, np.int64))
        if not len(indices):
            indices = np.zeros(1, np.int64)
        edges = np.append(starts[indices], end)
        # Frames before the first key frame have no sample of their own: the first sample stands for them.
        edges[0] = starts[0]
        return SamplePlan(indices.astype(np.int64), starts[indices], edges)
