"""Photos -> videos in feature space: which photo is shown when, and the features of the frames. Pure numpy.

A video is a sequence of shots, one photo each. During a shot a slow camera moves between views of its photo,
so a frame's feature is a mixture of those of two views. Between two shots there is a cut or a cross-fade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmr_ray.photos.views import VIEWS
from vmr_ray.schema import Span

SHOTS = (4, 8)  # photos of a video, both included
SHOT_SECONDS = (2.0, 12.0)
# Shares of the videos with cuts inside their shots, and with slow cross-fades; shares of the other joints.
RECUT, SLOW = 0.25, 0.25
FADES, FADE_SECONDS, SLOW_FADE_SECONDS = 0.4, 0.5, (1.0, 4.0)
TAKE_SECONDS = (1.0, 4.0)  # between two cuts inside a shot

Random = np.random.Generator


@dataclass(frozen=True)
class Take:
    """The camera moves evenly between two views, from `start` seconds to the next take or the shot's end."""

    start: float
    first_view: int
    last_view: int


@dataclass(frozen=True)
class Shot:
    """A photo on the screen, `[start, end)` seconds. `fade`: seconds of the cross-fade around its start."""

    photo: str
    start: float
    end: float
    fade: float
    takes: tuple[Take, ...]


def deal(photos: int, videos: int, random: Random) -> Iterator[list[int]]:
    """The photos of each video: every photo once before any comes again, and none twice in a video."""
    deck: list[int] = []
    for _ in range(videos):
        hand: list[int] = []
        for _ in range(int(random.integers(SHOTS[0], SHOTS[1] + 1))):
            if not deck:
                deck = random.permutation(photos).tolist()
            hand.append(deck.pop(next(i for i, photo in enumerate(deck) if photo not in hand)))
        yield hand


def shots(photos: Sequence[str], random: Random) -> list[Shot]:
    """A video that shows these photos one after the other."""
    style = random.random()
    recut, slow = style < RECUT, RECUT <= style < RECUT + SLOW
    result: list[Shot] = []
    start = 0.0
    for photo in photos:
        seconds = random.uniform(*SHOT_SECONDS)
        fade = 0.0
        if result:
            limit = min(seconds, result[-1].end - result[-1].start)
            if slow or recut:
                fade = min(random.uniform(*SLOW_FADE_SECONDS), limit)
            elif random.random() < FADES:
                fade = FADE_SECONDS
        cuts = [start]
        while recut and (cut := cuts[-1] + random.uniform(*TAKE_SECONDS)) < start + seconds - 0.5:
            cuts.append(cut)
        takes = tuple(Take(cut, *random.choice(VIEWS, 2, replace=False).tolist()) for cut in cuts)
        end = round(start + seconds, 2)
        result.append(Shot(photo, start, end, fade, takes))
        start = end
    return result


def frame_features(
    shots: Sequence[Shot], views: Mapping[str, NDArray[np.float16]], times: NDArray[np.float64]
) -> NDArray[np.float32]:
    """float32 [T, dim] of the frames at `times` [T] seconds; `views` are [VIEWS, dim] of each photo."""
    starts = np.array([shot.start for shot in shots])
    numbers = np.searchsorted(starts, times, side="right") - 1
    return np.stack([_frame(shots, int(n), views, float(t)) for n, t in zip(numbers, times, strict=True)])


def _frame(
    shots: Sequence[Shot], number: int, views: Mapping[str, NDArray[np.float16]], time: float
) -> NDArray[np.float32]:
    """dim; near the border of two shots a mixture of both."""
    shot = shots[number]
    own = _view(shot, views, time)
    # Half of a fade lies on either side of the border, so that the two photos are equally strong there.
    for border, fade, other in (
        (shot.start, shot.fade, number - 1),
        (shot.end, shots[number + 1].fade if number + 1 < len(shots) else 0.0, number + 1),
    ):
        distance = abs(time - border)
        if distance < fade / 2:
            share = 0.5 - distance / fade
            own = (1 - share) * own + share * _view(shots[other], views, time)
    return own


def _view(shot: Shot, views: Mapping[str, NDArray[np.float16]], time: float) -> NDArray[np.float32]:
    """dim; what the camera sees of the shot's photo. Before its start and after its end it stands still."""
    take = next((t for t in reversed(shot.takes) if t.start <= time), shot.takes[0])
    end = next((t.start for t in shot.takes if t.start > take.start), shot.end)
    place = float(np.clip((time - take.start) / (end - take.start), 0, 1))
    first, last = views[shot.photo][[take.first_view, take.last_view]].astype(np.float32)
    mixed: NDArray[np.float32] = (1 - place) * first + place * last
    return mixed


def moments(shots: Sequence[Shot], captions: Mapping[str, Sequence[str]]) -> dict[str, list[Span]]:
    """The moments of each caption; two photos of a video may have the same one."""
    spans: dict[str, list[Span]] = {}
    for shot in shots:
        for caption in dict.fromkeys(captions[shot.photo]):
            spans.setdefault(caption, []).append((shot.start, shot.end))
    return spans
