"""Layers of photos under a moving camera -> pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A strip: photos in a row, all cut to one shape, that melt into each other. In heights of the strip.
STRIP_WIDTH = 1.5  # of one photo
STRIP_SEAM = 0.3  # that two neighbours share


class View(NamedTuple):
    """What the camera sees at one frame: a square of `side` short sides of the image.

    `x` and `y`, from 0 to 1, say where it is between the left and the right, the upper and the lower edge.
    """

    frame: int
    x: float
    y: float
    side: float


class Place(NamedTuple):
    """A square part of the screen, in shares of the screen's side."""

    x: float
    y: float
    side: float


WHOLE_SCREEN = Place(0, 0, 1)


@dataclass(frozen=True)
class Layer:
    """A photo, or a strip of them, on the screen during the frames `[first, last)`.

    Attributes:
        photos: their numbers; several are a strip.
        views: the camera moves evenly from each to the next.
        fade_in, fade_out: frames at the two ends in which it comes up and goes.
    """

    photos: tuple[int, ...]
    first: int
    last: int
    views: tuple[View, ...]
    fade_in: int = 0
    fade_out: int = 0
    place: Place = WHOLE_SCREEN

    def opacity(self, frame: int) -> float:
        rising = (frame - self.first + 1) / (self.fade_in + 1)
        falling = (self.last - frame) / (self.fade_out + 1)
        return min(1.0, rising, falling)

    def view(self, frame: int) -> View:
        frames = [view.frame for view in self.views]
        x, y, side = (
            float(np.interp(frame, frames, values)) for values in list(zip(*self.views, strict=True))[1:]
        )
        return View(frame, x, y, side)


def draw(
    layers: Sequence[Layer], images: Mapping[int, Image.Image], size: int
) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, uint8 [size, size, 3]; later layers lie over earlier ones."""
    sources: dict[Layer, Image.Image] = {}
    for frame in range(max(layer.last for layer in layers)):
        screen = np.zeros((size, size, 3), np.float32)
        for layer in layers:
            if layer.last <= frame:
                sources.pop(layer, None)
            elif layer.first <= frame:
                if layer not in sources:
                    sources[layer] = _source([images[photo] for photo in layer.photos])
                _paint(screen, layer, sources[layer], frame)
        yield np.round(screen).astype(np.uint8)


def _paint(screen: NDArray[np.float32], layer: Layer, image: Image.Image, frame: int) -> None:
    size = len(screen)
    side = round(layer.place.side * size)
    left, top = round(layer.place.x * size), round(layer.place.y * size)
    view = layer.view(frame)
    edge = view.side * min(image.size)
    x, y = view.x * (image.width - edge), view.y * (image.height - edge)
    box = (x, y, x + edge, y + edge)
    seen = image.transform((side, side), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    part = screen[top : top + side, left : left + side]
    part += layer.opacity(frame) * (np.asarray(seen, np.float32) - part)


def _source(images: Sequence[Image.Image]) -> Image.Image:
    return images[0] if len(images) == 1 else strip(images)


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """Photos in a row. Each is cut to STRIP_WIDTH heights and melts into the next one over STRIP_SEAM."""
    height = max(min(image.size) for image in images)
    width, seam = round(STRIP_WIDTH * height), round(STRIP_SEAM * height)
    step = width - seam
    row = Image.new("RGB", (step * len(images) + seam, height))
    ramp = np.full((height, width), 255, np.uint8)
    ramp[:, :seam] = np.linspace(0, 255, seam)
    for number, image in enumerate(images):
        part = _cut(image, width, height)
        mask = Image.fromarray(ramp) if number else None
        row.paste(part, (number * step, 0), mask)
    return row


def strip_border(number: int, photos: int) -> float:
    """Where photo `number` begins on a strip, as a share of the strip's width: the middle of the seam."""
    step = STRIP_WIDTH - STRIP_SEAM
    return (number * step + STRIP_SEAM / 2) / strip_heights(photos)


def strip_heights(photos: int) -> float:
    """The width of a strip, in its heights."""
    return photos * (STRIP_WIDTH - STRIP_SEAM) + STRIP_SEAM


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image in another shape."""
    scale = min(image.width / width, image.height / height)
    w, h = scale * width, scale * height
    x, y = (image.width - w) / 2, (image.height - h) / 2
    return image.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
