"""The kinds of videos: which photo is on the screen when, and where its moments begin and end.

Everything here is in frames and shares, and knows no pixels: the random numbers decide it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.slides.screen import Layer, Place, View, strip_border, strip_heights

SHOT_SECONDS = (3.0, 9.0)
BACKGROUND_SECONDS = (10.0, 16.0)  # of `inset`
CROSS_FADES = 0.4  # share of the joints of `slides` that are no hard cuts

Random = np.random.Generator
Frames = tuple[int, int]  # [first, last)


@dataclass(frozen=True)
class Script:
    """A video before it is drawn: its layers, and the moments of each of its photos."""

    layers: tuple[Layer, ...]
    moments: tuple[tuple[Frames, ...], ...]


def slides(photos: Sequence[int], fps: int, random: Random) -> Script:
    """One shot a photo under a slow camera; hard cuts, and half-second cross-fades around the border."""
    shots = _shots(len(photos), fps, random)
    fades = [fps // 2 if random.random() < CROSS_FADES else 0 for _ in shots[1:]]
    layers = []
    for photo, (first, last, before, _) in zip(photos, _overlapping(shots, fades), strict=True):
        layers.append(Layer((photo,), first, last, _drift(first, last, (0.72, 1.0), random), before))
    return _one_shot_each(layers, shots)


def glide(photos: Sequence[int], fps: int, random: Random) -> Script:
    """The camera travels along a strip of photos that melt into each other: there are no cuts at all.

    A photo's moment is the time in which the middle of the screen is on it.
    """
    shots = _shots(len(photos), fps, random)
    side, width = 0.8, strip_heights(len(photos))
    inner = [width * strip_border(number, len(photos)) for number in range(1, len(photos))]
    centres = [side / 2, *inner, width - side / 2]
    frames = [*(first for first, _ in shots), shots[-1][1]]
    views = tuple(
        View(frame, (centre - side / 2) / (width - side), random.uniform(), side)
        for frame, centre in zip(frames, centres, strict=True)
    )
    return _one_shot_each([Layer(tuple(photos), 0, frames[-1], views)], shots)


def recut(photos: Sequence[int], fps: int, random: Random) -> Script:
    """Each photo in several crops with hard cuts inside its moment, and one to two seconds of a cross-fade to
    the next one: no cut is a border, and no border is a cut."""
    shots = _shots(len(photos), fps, random)
    fades = [int(random.integers(fps, 2 * fps + 1)) for _ in shots[1:]]
    layers = []
    for photo, (first, last, before, after) in zip(photos, _overlapping(shots, fades), strict=True):
        # No cut during a fade. Between two fades lies a second at least, so there is one cut at least.
        cuts, cut = [first], first + before + int(random.integers(fps // 2, fps))
        while cut < last - after:
            cuts.append(cut)
            cut += int(random.integers(fps, 5 * fps // 2))
        for start, end in pairwise([*cuts, last]):
            fade = before if start == first else 0
            layers.append(Layer((photo,), start, end, _drift(start, end, (0.45, 0.9), random), fade))
    return _one_shot_each(layers, shots)


def inset(photos: Sequence[int], fps: int, random: Random) -> Script:
    """Two long backgrounds one after the other; the other photos are small, and come and go over them at any
    time: moments overlap."""
    half, end = (int(fps * seconds) for seconds in np.cumsum(random.uniform(*BACKGROUND_SECONDS, 2)))
    moments = [(0, half), (half, end)]
    layers = [
        Layer((photo,), first, last, _drift(first, last, (0.72, 1.0), random))
        for photo, (first, last) in zip(photos[:2], moments, strict=True)
    ]
    for photo, (first, last) in zip(photos[2:], _shots(len(photos) - 2, fps, random), strict=True):
        start = int(random.integers(0, end - (last - first) + 1))
        stop, fade = start + last - first, fps // 3
        neighbours = [layer.place for layer in layers[2:] if start < layer.last and layer.first < stop]
        views, place = _drift(start, stop, (0.85, 1.0), random), _free_place(neighbours, random)
        layers.append(Layer((photo,), start, stop, views, fade, fade, place))
        moments.append((start, stop))
    return _one_shot_each(layers, moments)


def again(photos: Sequence[int], fps: int, random: Random) -> Script:
    """Photos come back later in another crop, never twice in a row: several moments a query."""
    order = list(range(len(photos)))
    for _ in range(int(random.integers(2, len(photos) + 1))):
        order.append(int(random.choice([number for number in range(len(photos)) if number != order[-1]])))
    moments: list[list[Frames]] = [[] for _ in photos]
    layers = []
    for number, (first, last) in zip(order, _shots(len(order), fps, random), strict=True):
        layers.append(Layer((photos[number],), first, last, _drift(first, last, (0.5, 0.9), random)))
        moments[number].append((first, last))
    return Script(tuple(layers), tuple(map(tuple, moments)))


KINDS: dict[str, Callable[[Sequence[int], int, Random], Script]] = {
    kind.__name__: kind for kind in (slides, glide, recut, inset, again)
}


def _shots(count: int, fps: int, random: Random) -> list[Frames]:
    """Shots one after the other, from frame 0 on."""
    lengths = [round(fps * seconds) for seconds in random.uniform(*SHOT_SECONDS, count)]
    ends = np.cumsum(lengths).tolist()
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _overlapping(shots: Sequence[Frames], fades: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The shots with a cross-fade around each border: first, last, the fade before and the fade after.

    Half of a fade lies on either side, so that the two photos are equally strong at the border.
    """
    return [
        (first - before // 2, last + after - after // 2, before, after)
        for (first, last), (before, after) in zip(shots, pairwise([0, *fades, 0]), strict=True)
    ]


def _drift(first: int, last: int, sides: tuple[float, float], random: Random) -> tuple[View, View]:
    """A slow pan and zoom over those frames, between two crops whose sides lie in that range."""
    (x, x_end), (y, y_end), (side, side_end) = (
        random.uniform(*r, 2) for r in ((0.0, 1.0), (0.0, 1.0), sides)
    )
    return View(first, x, y, side), View(last, x_end, y_end, side_end)


def _free_place(others: Sequence[Place], random: Random) -> Place:
    """A place for a small picture that covers little of the others; in the corners there is room for four."""
    side = random.uniform(0.36, 0.5)
    corners = [(x, y) for x in (0.0, 1 - side) for y in (0.0, 1 - side)]
    places = [Place(x, y, side) for x, y in [*random.uniform(0, 1 - side, (20, 2)).tolist(), *corners]]

    def covered(place: Place) -> float:
        return sum(
            max(0.0, min(place.x + side, o.x + o.side) - max(place.x, o.x))
            * max(0.0, min(place.y + side, o.y + o.side) - max(place.y, o.y))
            for o in others
        )

    return min(places, key=covered)


def _one_shot_each(layers: Sequence[Layer], shots: Sequence[Frames]) -> Script:
    return Script(tuple(layers), tuple((shot,) for shot in shots))
