"""Which frames of a video to look at, and the time that each of them stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_REST = 0.1  # steps; a shorter rest of the video gets no sample of its own
# s; a frame that begins this little after a sampling instant counts as on screen: at 29.97 frames a
# second whole seconds fall just before frames, and the one before may be a whole GOP more to decode.
_SNAP = 0.017
# A still picture may be sampled again and again, but a header alone must not make work for days.
_MOST, _MOST_A_FRAME = 10_000, 100
_STILL = 0.04  # s; the length of a lone frame whose file does not tell it


@dataclass(frozen=True)
class Plan:
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
    """`fps=<x>`: x frames a second; `every=<n>`: every n-th frame; `keyframes`: the key frames."""

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

    def plan(self, starts: ArrayLike, ends: ArrayLike, key_indices: ArrayLike) -> Plan:
        """Choose frames.

        `fps=x` takes the frame on screen every 1/x seconds, beginning with the first frame; it stands
        for the times that are nearer to its instant than to the next ones. For `every` and `keyframes`
        a frame stands for the time until the next sampled one. The last edge is the end of the video.

        Args:
            starts, ends: [N] seconds, N >= 1, all frames in presentation order. Only the last of
                `ends` counts; one that is not after its start is replaced by the median frame gap.
            key_indices: [K] frame numbers of the key frames.

        Raises:
            ValueError: the few frames claim to last absurdly long.
        """
        starts = np.asarray(starts, np.float64)
        end = float(np.asarray(ends, np.float64)[-1])
        if not end > starts[-1]:
            end = starts[-1] + (float(np.median(np.diff(starts))) if len(starts) > 1 else _STILL)
        if self.kind == "fps":
            count = max(1, math.ceil((end - starts[0]) * self.value - _REST))
            if count > max(_MOST, _MOST_A_FRAME * len(starts)):
                raise ValueError(
                    f"its {len(starts)} frames claim to last {end - starts[0]:.0f} s, which would be "
                    f"{count} samples: mend its header, or sample by every=<n> or keyframes"
                )
            instants = starts[0] + np.arange(count) / self.value
            snap = min(_SNAP, 0.25 / self.value)
            indices = np.searchsorted(starts, instants + snap, side="right") - 1
            edges = np.concatenate([starts[:1], (instants[:-1] + instants[1:]) / 2, [end]])
            return Plan(indices.astype(np.int64), starts[indices], edges)
        if self.kind == "every":
            indices = np.arange(0, len(starts), int(self.value))
        else:
            indices = np.unique(np.asarray(key_indices, np.int64))
        if not len(indices):
            indices = np.zeros(1, np.int64)
        edges = np.append(starts[indices], end)
        # Frames before the first key frame have no sample of their own: the first one stands for them.
        edges[0] = starts[0]
        return Plan(indices.astype(np.int64), starts[indices], edges)
