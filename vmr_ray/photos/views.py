"""What a camera sees of a photo: the whole of it, and parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmr_ray.schema import Scaling
from vmr_ray.video.decode.scaling import scale_frame

VIEWS = 4  # of a photo, the whole one included
# What feature stores call the views: when they are drawn in another way, they need another name.
SAMPLING = f"views={VIEWS}"
_SIDES = (0.5, 1.0)  # of a part, as a share of the photo's
_SHAPES = (3 / 4, 4 / 3)  # width to height of a part, as a multiple of the photo's


def views(image: Image.Image, size: int, scaling: Scaling, random: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [VIEWS, size, size, 3]: an image and random parts of it, made square as a video's frames are."""
    if scaling.interpolation == "decoder":  # decoders scale by bicubic interpolation too
        scaling = replace(scaling, interpolation="bicubic")
    boxes = [(0, 0, *image.size), *(_part(*image.size, random) for _ in range(VIEWS - 1))]
    return np.stack([scale_frame(np.asarray(image.crop(box)), size, size, scaling) for box in boxes])


def _part(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image, in pixels."""
    side, shape = random.uniform(*_SIDES), np.exp(random.uniform(*np.log(_SHAPES)) / 2)
    w, h = (
        max(1, round(min(1.0, share) * n)) for share, n in ((side * shape, width), (side / shape, height))
    )
    left, top = (int(random.integers(n + 1)) for n in (width - w, height - h))
    return left, top, left + w, top + h
