"""Frames are fitted as the image processors of transformers do it, on every path of the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from tests.pictures import GOP, picture, whole_frames, write_pictures
from vmr_ray.config import DecodeConfig
from vmr_ray.schema import Scaling
from vmr_ray.video.decode import FrameDecoder
from vmr_ray.video.decode.scaling import scale_frame


def processed(frame: np.ndarray, size: dict[str, int], crop: tuple[int, int] | None, resample: int):
    """What transformers' own processor makes of a frame, as pixels."""
    processor = CLIPImageProcessor(
        size=size,
        do_center_crop=crop is not None,
        crop_size={"height": crop[1], "width": crop[0]} if crop else None,
        resample=resample,
        do_rescale=False,
        do_normalize=False,
    )
    return np.asarray(processor(frame, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)


@pytest.mark.parametrize("shape", [(97, 64), (64, 97), (64, 64), (30, 20), (501, 33)], ids=str)
@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_the_pixels_are_those_of_the_processor(shape: tuple[int, int], resample: int) -> None:
    frame, name = picture(*shape), Image.Resampling(resample).name.lower()
    np.testing.assert_array_equal(
        scale_frame(frame, 24, 24, Scaling("crop", name)),
        processed(frame, {"shortest_edge": 24}, (24, 24), resample),
    )
    np.testing.assert_array_equal(
        scale_frame(frame, 24, 16, Scaling("squash", name)),
        processed(frame, {"height": 16, "width": 24}, None, resample),
    )


@pytest.mark.parametrize("edge", [21, 24, 31])
def test_scaled_first_to_another_edge(edge: int) -> None:
    frame = picture(97, 64)
    np.testing.assert_array_equal(
        scale_frame(frame, 24, 24, Scaling("crop", "bicubic", edge)),
        processed(frame, {"shortest_edge": edge}, (24, 24), 3),
    )
    np.testing.assert_array_equal(
        scale_frame(frame, 24, 24, Scaling("squash", "bicubic", edge)),
        processed(frame, {"height": edge, "width": edge}, (24, 24), 3),
    )


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (400, 1), (1, 400)])
def test_padding_keeps_the_shape_between_black_bars(width: int, height: int) -> None:
    frame = np.full((height, width, 3), 200, np.uint8)
    padded = scale_frame(frame, 32, 24, Scaling("pad", "bicubic"))
    assert padded.shape == (24, 32, 3)
    rows, columns = np.flatnonzero(padded.any((1, 2))), np.flatnonzero(padded.any((0, 2)))
    scale = min(32 / width, 24 / height)
    assert (len(columns), len(rows)) == (max(1, int(width * scale)), max(1, int(height * scale)))
    assert abs(rows[0] - (23 - rows[-1])) <= 1
    assert abs(columns[0] - (31 - columns[-1])) <= 1
    assert (padded[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 200).all()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("b_frames", [0, 2], ids=["decord", "pyav"])
def test_a_video_is_fitted_like_its_frames(tmp_path: Path, rotation: int, b_frames: int) -> None:
    path = write_pictures(tmp_path / "a.mp4", 130, 72, rotation, b_frames)
    config = DecodeConfig(sampling=f"every={GOP}")
    for scaling in (Scaling("crop", "bicubic"), Scaling("pad", "bilinear"), Scaling("squash", "lanczos")):
        with FrameDecoder(config, 40, 24, scaling) as decoder:
            (chunk,) = decoder.decode(str(path))
        expected = [scale_frame(frame, 40, 24, scaling) for frame in whole_frames(path)]
        np.testing.assert_array_equal(chunk.frames, np.stack(expected))


def test_the_decoders_own_scaling_stays_near(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mp4", 130, 72)
    with FrameDecoder(DecodeConfig(sampling=f"every={GOP}"), 40, 24) as decoder:
        (chunk,) = decoder.decode(str(path))
    expected = [scale_frame(frame, 40, 24, Scaling("squash", "bicubic")) for frame in whole_frames(path)]
    difference = np.abs(chunk.frames.astype(float) - np.stack(expected))
    assert 0 < difference.mean() < 10
