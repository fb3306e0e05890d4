"""Frames as JPEGs for people. Runs inside a decoding process."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vmr_ray.video.decode.frame_index import FrameIndex
from vmr_ray.video.decode.hdr import as_sdr
from vmr_ray.video.decode.pyav_reader import orientation, turned

# Frames that may be decoded for one thumbnail, if there are pictures to show instead.
MAX_DECODED = 1500
_EVERY, _WIDTH = 4.0, 320  # seconds from one picture to the next, pixels


def jpeg(frame: av.VideoFrame, aspect: float, width: int) -> bytes:
    """A frame as people see it: upright, of square pixels (`aspect` is the width of its own divided by their
    height), at most `width` pixels wide."""
    from PIL import Image

    turns, mirrored = orientation(frame)
    frame = as_sdr(frame)
    size = np.array([frame.width * aspect, frame.height])
    size *= min(1.0, width / size[turns % 2])
    across, down = np.maximum(1, size.round().astype(int)).tolist()
    scaled = VideoReformatter().reformat(
        frame, across, down, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
    )
    out = io.BytesIO()
    Image.fromarray(turned(scaled.to_ndarray(), turns, mirrored)).save(out, "JPEG", quality=80)
    return out.getvalue()


class KeptPictures:
    """Collects pictures of a video while it is decoded: one every few seconds."""

    def __init__(self, index: FrameIndex):
        self._aspect = index.aspect
        self._pictures: list[tuple[float, str]] = []
        self._next = -np.inf

    def add(self, second: float, frame: av.VideoFrame) -> None:
        """Keep this frame if it is time for one."""
        if second >= self._next:
            self._next = second + _EVERY
            text = base64.b64encode(jpeg(frame, self._aspect, _WIDTH)).decode()
            self._pictures.append((second, text))

    def take(self) -> list[tuple[float, str]]:
        """The pictures since the last call, seconds and Base64."""
        pictures, self._pictures = self._pictures, []
        return pictures


def keys_far_apart(index: FrameIndex) -> bool:
    """Whether to show some frame of the video more than MAX_DECODED others have to be decoded."""
    if not index.timed:  # cannot be entered
        return len(index.pts) > MAX_DECODED
    return bool(np.diff([0, *index.keys, len(index.pts)]).max() > MAX_DECODED)
