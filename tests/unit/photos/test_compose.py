from __future__ import annotations

import itertools

import numpy as np
import pytest

from vmr_ray.photos.compose import SHOTS, Shot, Take, deal, frame_features, moments, shots
from vmr_ray.photos.views import VIEWS

PHOTOS = ["a", "b", "c", "d", "e"]


def one_hot(photos: list[str]) -> dict[str, np.ndarray]:
    """Views that say which photo they are of (the first numbers) and which view they are (the last)."""
    places, numbers = np.eye(len(photos)), np.eye(VIEWS)
    return {
        photo: np.concatenate([np.tile(place, (VIEWS, 1)), numbers], 1).astype(np.float16)
        for photo, place in zip(photos, places, strict=True)
    }


def test_every_photo_is_dealt_once_before_any_comes_again() -> None:
    hands = list(deal(11, 40, np.random.default_rng(0)))
    assert {len(hand) for hand in hands} == set(range(SHOTS[0], SHOTS[1] + 1))
    assert all(len(set(hand)) == len(hand) for hand in hands)
    counts = np.bincount(list(itertools.chain(*hands)), minlength=11)
    assert counts.max() - counts.min() <= 1


def test_a_frame_shows_the_photo_in_whose_moment_it_is():
    for seed in range(50):
        video = shots(PHOTOS, np.random.default_rng(seed))
        assert [shot.photo for shot in video] == PHOTOS
        assert all(a.end == b.start for a, b in itertools.pairwise(video)) and video[0].start == 0
        times = np.arange(0, video[-1].end, 0.05)
        shown = frame_features(video, one_hot(PHOTOS), times)
        shares, views = shown[:, : len(PHOTOS)], shown[:, len(PHOTOS) :]
        # Features are mixtures; the strongest photo is the moment's, and no third one shines through.
        np.testing.assert_allclose([shares.sum(1), views.sum(1)], 1, rtol=1e-3)
        truth = np.searchsorted([shot.start for shot in video], times, side="right") - 1
        assert (shares[np.arange(len(times)), truth] >= 0.5 - 1e-6).all()
        assert ((shares > 1e-6).sum(1) <= 2).all()
        assert (np.abs(np.diff(views, axis=0)).max() > 0) and (views > 1e-6).sum(1).max() >= 2


def test_the_camera_moves_evenly_and_a_fade_is_even_at_its_border():
    video = [
        Shot("a", 0.0, 4.0, 0.0, (Take(0.0, 0, 1),)),
        Shot("b", 4.0, 8.0, 2.0, (Take(4.0, 2, 2), Take(6.0, 3, 0))),
    ]
    shown = frame_features(video, one_hot(["a", "b"]), np.array([0.0, 1.0, 3.5, 4.0, 4.5, 5.5, 6.0, 7.0]))
    a, views = shown[:, 0], shown[:, 2:]
    np.testing.assert_allclose(a, [1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    np.testing.assert_allclose(views[1], [0.75, 0.25, 0, 0])
    np.testing.assert_allclose(views[5:], [[0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0, 0, 0.5]])


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_is_the_same_video(seed: int):
    one, two = (shots(PHOTOS, np.random.default_rng(seed)) for _ in range(2))
    assert one == two != shots(PHOTOS, np.random.default_rng(seed + 9))


def test_a_caption_of_two_photos_has_the_moments_of_both():
    video = [Shot(p, t, t + 2.5, 0.0, (Take(t, 0, 1),)) for p, t in (("a", 0.0), ("b", 2.5), ("c", 5.0))]
    captions = {"a": ["a dog", "a dog"], "b": ["a cat"], "c": ["a dog", "a bird"]}
    assert moments(video, captions) == {
        "a dog": [(0.0, 2.5), (5.0, 7.5)],
        "a cat": [(2.5, 5.0)],
        "a bird": [(5.0, 7.5)],
    }
