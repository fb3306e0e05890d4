"""Short videos of real photos, which installed packages bring along, and plain sentences about them.

Nothing is downloaded and no photo is copied into this project. scikit-learn and matplotlib come with every
installation, scikit-image with the extra `demo`; photos of a package that is missing are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vmr_ray.demo.video_file import write_video
from vmr_ray.storage import write_bytes

WIDTH, HEIGHT, FPS = 320, 240, 12
SHOT_SECONDS = (4.0, 7.0)
_ZOOM = 0.8  # the smallest part of a photo that the camera shows, as a share of the largest
_PLACES = (0.2, 0.6)  # where the camera begins and ends, as a share of the room that it has in the photo
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}


class Photo(NamedTuple):
    """A file of a package, and a sentence about what it shows; "" for one that is not asked about."""

    package: str
    name: str
    sentence: str = ""


# The sentences were written once, from looking at the photos, before any search.
VIDEOS = {
    "travel.mp4": (
        Photo("sklearn", "china.jpg", "a Chinese temple near a lake"),
        Photo("skimage", "coins.png", "rows of old coins"),
        Photo("sklearn", "flower.jpg", "a big orange flower in a garden"),
        Photo("matplotlib", "grace_hopper.jpg", "an old woman with glasses in a navy uniform"),
    ),
    "home.mp4": (
        Photo("skimage", "coffee.png", "a cup of coffee on a wooden table"),
        Photo("skimage", "chelsea.png", "a cat looks into the camera"),
        Photo("skimage", "page.png"),
        Photo("skimage", "motorcycle_left.png", "a red motorcycle in a garage"),
    ),
    "space.mp4": (
        Photo("skimage", "hubble_deep_field.jpg", "stars and galaxies in a black sky"),
        Photo("skimage", "rocket.jpg", "a rocket is ready for launch at night"),
        Photo("skimage", "moon.png", "craters on the moon"),
        Photo("skimage", "astronaut.png", "a smiling woman in an orange space suit"),
    ),
    "street.mp4": (
        Photo("skimage", "grass.png"),
        Photo("skimage", "camera.png", "a man takes a picture with a camera on a tripod"),
        Photo("skimage", "gravel.png"),
        Photo("skimage", "brick.png", "a wall of bricks"),
    ),
}


@dataclass(frozen=True)
class Shot:
    """The span `[start, end)` seconds of a video that shows one photo."""

    video: str
    start: float
    end: float
    sentence: str


class Slideshow(NamedTuple):
    """The folder of the rendered videos, their shots, and how many of the photos were not installed."""

    videos: Path
    shots: list[Shot]
    missing: int


def render_photos(out: Path, progress: Callable[[int, int], None] | None = None) -> Slideshow:
    """Write `videos/*.mp4` and, last, `shots.json` under `out`: every photo under a slow pan and zoom.

    The same photos give the same files; those that are finished are not rendered again. `progress(done,
    total)` is called after each video.
    """
    found = {name: [photo for photo in photos if find(photo)] for name, photos in VIDEOS.items()}
    plans = {name: _plan(name, photos) for name, photos in found.items() if photos}
    shots = [shot for plan in plans.values() for shot in plan]
    missing = sum(map(len, VIDEOS.values())) - len(shots)
    videos, done_file = out / "videos", out / "shots.json"
    text = json.dumps([asdict(shot) for shot in shots])
    if not (done_file.is_file() and done_file.read_text() == text):
        done_file.unlink(missing_ok=True)
        videos.mkdir(parents=True, exist_ok=True)
        for name in VIDEOS.keys() - plans.keys():
            (videos / name).unlink(missing_ok=True)
        for done, (name, plan) in enumerate(plans.items(), start=1):
            write_video(videos / name, _pictures(found[name], plan), FPS, WIDTH, HEIGHT)
            if progress:
                progress(done, len(plans))
        write_bytes(done_file, text.encode())
    return Slideshow(videos, shots, missing)


def find(photo: Photo) -> Path | None:
    """The photo's file, or None if it is not installed. The package is not imported."""
    spec = find_spec(photo.package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, _FOLDERS[photo.package], photo.name)
        if path.is_file():
            return path
    return None


def _plan(video: str, photos: list[Photo]) -> list[Shot]:
    """The shots of a video, one after the other; every time is a whole number of frames."""
    rng = np.random.default_rng(list(VIDEOS).index(video))
    lengths = rng.uniform(*SHOT_SECONDS, len(photos))
    cuts = [0.0, *(round(float(end) * FPS) / FPS for end in np.cumsum(lengths))]
    return [
        Shot(video, start, end, photo.sentence)
        for photo, (start, end) in zip(photos, pairwise(cuts), strict=True)
    ]


def _pictures(photos: list[Photo], plan: list[Shot]) -> Iterator[Image.Image]:
    """The pictures of a video in order."""
    for number, (photo, shot) in enumerate(zip(photos, plan, strict=True)):
        path = find(photo)
        assert path is not None
        with Image.open(path) as file:
            picture = file.convert("RGB")
        frames = round((shot.end - shot.start) * FPS)
        for box in camera_path(picture.width, picture.height, frames, closer=number % 2 == 0):
            yield picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)


def camera_path(
    width: int, height: int, frames: int, closer: bool
) -> Iterator[tuple[float, float, float, float]]:
    """What the camera shows of a photo, frame by frame: left, top, right and bottom.

    It moves right and down over the middle of the photo, and closer or away meanwhile.
    """
    largest = min(width / WIDTH, height / HEIGHT) * (1 - 1e-9)  # never beyond the photo by rounding
    for part in np.linspace(0.0, 1.0, frames).tolist():
        scale = largest * (1 - (1 - _ZOOM) * (part if closer else 1 - part))
        place = _PLACES[0] + (_PLACES[1] - _PLACES[0]) * part
        left, top = (width - WIDTH * scale) * place, (height - HEIGHT * scale) * place
        yield left, top, left + WIDTH * scale, top + HEIGHT * scale
