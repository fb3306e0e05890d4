from __future__ import annotations

import numpy as np
from PIL import Image

from vmr_ray.photos.views import VIEWS, views
from vmr_ray.schema import Scaling


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_the_first_view_is_the_whole_photo_and_the_others_are_parts_of_it():
    parts = [
        views(ramp(90, 60), 32, Scaling("squash", "decoder"), np.random.default_rng(seed))
        for seed in range(40)
    ]
    assert parts[0].shape == (VIEWS, 32, 32, 3)
    reds, greens = np.array(parts)[..., 16, :, 0].astype(int), np.array(parts)[..., :, 16, 1].astype(int)
    assert (reds[:, 0, 0] < 8).all() and (reds[:, 0, -1] > 247).all()
    for values in (reds, greens):
        seen = (values[:, 1:, -1] - values[:, 1:, 0]) / 255  # share of the photo's side
        assert 0.4 < seen.min() < 0.5 and 0.9 < seen.max() <= 1
        assert values[:, 1:, 0].min() < 20 and values[:, 1:, 0].max() > 80  # here and there


def test_views_are_made_square_as_the_encoder_wants_it():
    padded = views(ramp(90, 60), 30, Scaling("pad", "bilinear"), np.random.default_rng(0))
    assert not padded[0, 0].any() and padded[0, 15].any()
    cropped = views(ramp(90, 60), 30, Scaling("crop", "bilinear"), np.random.default_rng(0))
    assert cropped[0, 15, 0, 0] > 35 and cropped[0, 15, -1, 0] < 220


def test_the_smallest_photo_has_views():
    assert views(ramp(1, 1), 8, Scaling("squash", "bicubic"), np.random.default_rng(0)).shape == (
        VIEWS,
        8,
        8,
        3,
    )
