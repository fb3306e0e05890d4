"""Read frames with decord, where it can be trusted. Runs inside the decoder's child process."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vmr_ray.schema import Scaling
from vmr_ray.video.decode.frame_index import OPTIONS, FrameIndex
from vmr_ray.video.decode.pyav_reader import orientation
from vmr_ray.video.decode.sampling import SamplePlan
from vmr_ray.video.decode.scaling import scale_frame

# decord queues up to 10,000 packets ahead of its decoder.
_READ_AHEAD_PACKETS = 10_000
_READ_AHEAD_BYTES = 256 * 2**20
_FULL_FRAMES = 4  # full-resolution frames in memory at once


def decord_fits(index: FrameIndex, plan: SamplePlan, chunk: int) -> bool:
    """Whether decord reads this file's frames correctly, in limited memory and without wasted work."""
    if index.skippable or not index.seekable or not index.closed or index.discards or index.damage:
        return False
    if index.hdr:
        return False
    ahead = Path(index.path).stat().st_size * min(1.0, _READ_AHEAD_PACKETS / len(index.pts))
    # The reader is rewound after every chunk, which costs up to one GOP each: sparse chunks only.
    longest_gop = np.diff(np.append(index.keys, len(index.pts))).max()
    span = chunk * len(index.pts) / len(plan.indices)
    sparse = len(plan.indices) <= chunk or 4 * longest_gop <= span
    return bool(sparse and ahead <= _READ_AHEAD_BYTES) and not _is_mirrored(index.path)


def _is_mirrored(path: str) -> bool:
    """Whether the first frame is to be shown as a mirror image, which decord does not do."""
    with av.open(path, options=OPTIONS) as container:
        stream = container.streams.best("video")
        return any(orientation(frame)[1] for frame in islice(container.decode(stream), 1))


class DecordReader:
    """Reads with decord, and returns nothing in doubt: decord reports a wrong frame on stderr, if at all."""

    def __init__(self, index: FrameIndex, width: int, height: int, threads: int, scaling: Scaling):
        self._index = index
        self._size, self._scaling = (width, height), scaling
        self._options = {"num_threads": threads}
        if scaling.interpolation == "decoder":
            self._options |= {"width": width, "height": height}
        self._reader: Any = None
        self._fits = True

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """The frames of these numbers, uint8 [n, height, width, 3]; None if one may be wrong."""
        import decord

        try:
            if self._reader is None and self._fits:
                self._reader = decord.VideoReader(self._index.path, **self._options)
                self._fits = self._same_times()
            if not self._fits:
                return None
            frames = self._read(indices)
            # Stops its decoding ahead, which would fill the memory while this chunk is sent.
            self._reader.seek(0)
            if os.fstat(2).st_size == 0:
                return frames
        except (RuntimeError, IndexError, AssertionError, decord.DECORDError):
            pass
        self._reader = None
        os.ftruncate(2, 0)
        return None

    def _read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._scaling.interpolation == "decoder":
            frames: NDArray[np.uint8] = self._reader.get_batch(indices).asnumpy()
            return frames
        return np.stack(
            [
                scale_frame(frame, *self._size, self._scaling)
                for first in range(0, len(indices), _FULL_FRAMES)
                for frame in self._reader.get_batch(indices[first : first + _FULL_FRAMES]).asnumpy()
            ]
        )

    def _same_times(self) -> bool:
        """Whether decord counts the frames of the index, at the same times."""
        count = len(self._reader)
        starts = self._reader.get_frame_timestamp(range(count))[:, 0].astype(np.float64)
        gaps = self._index.starts - self._index.starts[0]
        return count == len(gaps) and np.allclose(starts - starts[0], gaps, rtol=1e-6, atol=2e-3)
