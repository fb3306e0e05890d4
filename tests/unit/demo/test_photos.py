"""Videos of the photos that installed packages bring along."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from vmr_ray.demo import photos
from vmr_ray.demo.photos import FPS, HEIGHT, VIDEOS, WIDTH, Photo, Slideshow, camera_path, render_photos


@pytest.fixture(scope="module")
def slideshow(tmp_path_factory: pytest.TempPathFactory) -> Slideshow:
    """One video, of photos that every installation has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "VIDEOS", {"travel.mp4": VIDEOS["travel.mp4"][::2]})
        return render_photos(tmp_path_factory.mktemp("photos"))


def test_a_shot_shows_its_photo_until_the_cut(slideshow: Slideshow):
    first, second = slideshow.shots
    assert (first.start, first.end, slideshow.missing) == (0, second.start, 0)
    with av.open(str(slideshow.videos / "travel.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == round(second.end * FPS) and frames[0].shape == (HEIGHT, WIDTH, 3)
    changes = [np.abs(a - b).mean() for a, b in pairwise(frames)]
    assert np.argmax(changes) + 1 == round(second.start * FPS)
    assert min(changes) > 0  # the camera moves


def test_finished_videos_are_not_rendered_again(slideshow: Slideshow, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(photos, "VIDEOS", {"travel.mp4": VIDEOS["travel.mp4"][::2]})
    again = render_photos(slideshow.videos.parent, lambda *done: calls.append(done))
    assert again == slideshow and not calls


def test_photos_that_are_not_installed_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b.mp4").touch()  # of a call that had the photos
    here, gone = VIDEOS["travel.mp4"][0], Photo("no_such_package", "a.png", "a cat")
    monkeypatch.setattr(photos, "VIDEOS", {"a.mp4": (gone, here), "b.mp4": (gone,)})
    rendered = render_photos(tmp_path)
    assert [(shot.video, shot.sentence) for shot in rendered.shots] == [("a.mp4", here.sentence)]
    assert rendered.missing == 2
    assert [path.name for path in rendered.videos.iterdir()] == ["a.mp4"]


def test_every_photo_of_the_development_environment_is_there():
    every = [photo for video in VIDEOS.values() for photo in video]
    assert len(set(every)) == len(every) == 16
    assert not [photo.name for photo in every if photos.find(photo) is None]
    assert sum(bool(photo.sentence) for photo in every) >= 8


@pytest.mark.parametrize("size", [(640, 427), (512, 600), (WIDTH, HEIGHT), (371, 370)])
@pytest.mark.parametrize("closer", [True, False])
def test_the_camera_stays_on_the_photo(size: tuple[int, int], closer: bool):
    boxes = list(camera_path(*size, 50, closer))
    assert len(boxes) == 50
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        assert (right - left) / (bottom - top) == pytest.approx(WIDTH / HEIGHT)
    widths = [right - left for left, _, right, _ in boxes]
    assert widths == sorted(widths, reverse=closer)
