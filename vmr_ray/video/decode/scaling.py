"""Fit frames of any shape into an encoder's input. Runs inside the decoder's child process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmr_ray.schema import Scaling


def scale_frame(frame: NDArray[np.uint8], width: int, height: int, scaling: Scaling) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] of an upright frame of any size, by one of Pillow's filters.

    The result has the same pixels as that of the image processors of transformers, which use Pillow too.
    """
    from PIL import Image

    size = _scaled_size(frame.shape[1], frame.shape[0], width, height, scaling)
    resample = Image.Resampling[scaling.interpolation.upper()]
    return _middle(np.asarray(Image.fromarray(frame).resize(size, resample)), width, height)


def _scaled_size(
    frame_width: int, frame_height: int, width: int, height: int, scaling: Scaling
) -> tuple[int, int]:
    """(width, height) to which a frame is scaled before bars are added or cut off."""
    box_width, box_height = (scaling.edge or width), (scaling.edge or height)
    if scaling.fit == "squash":
        return box_width, box_height
    narrower = frame_width * box_height <= frame_height * box_width
    if narrower == (scaling.fit == "crop"):
        return box_width, max(1, int(box_width * frame_height / frame_width))
    return max(1, int(box_height * frame_width / frame_height)), box_height


def _middle(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The middle `width` x `height` pixels of an image; black where it is smaller."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return image[top : top + height, left : left + width]
    part = image[max(0, top) :][:height, max(0, left) :][:, :width]
    result = np.zeros((height, width, 3), np.uint8)
    result[max(0, -top) :][: part.shape[0], max(0, -left) :][:, : part.shape[1]] = part
    return result
