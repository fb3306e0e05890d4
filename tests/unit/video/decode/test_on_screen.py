from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

from tests.reported import reported_file, reported_files
from tests.videos import read_index, write_video
from vmr_ray.config import DecodeConfig
from vmr_ray.schema import Scaling
from vmr_ray.video.clip_file import write_clip
from vmr_ray.video.clips import make_thumbnail
from vmr_ray.video.decode import FrameDecoder, Sampling
from vmr_ray.video.decode.decord_reader import decord_fits
from vmr_ray.video.decode.frame_index import read_index as index_video
from vmr_ray.video.decode.on_screen import EndedError, frame_on_screen, frames_from, frames_of_span
from vmr_ray.video.decode.pyav_reader import upright

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(DecodeConfig(sampling="every=7"), WIDTH, HEIGHT) as decoder:
        yield decoder


def first_picture(path: Path) -> np.ndarray:
    """The first picture of a clip, which has to be at 0."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.time == 0
        return frame.to_ndarray(format="rgb24")


@pytest.mark.parametrize("kind", reported_files())
def test_embedding_thumbnail_and_clip_show_the_same_frame(
    kind: str | Path, tmp_path: Path, decoder: FrameDecoder
) -> None:
    path = reported_file(kind, tmp_path)
    index = index_video(str(path))
    plan = Sampling.parse("every=7").plan(index.starts, index.ends, index.keys)
    exact = not decord_fits(index, plan, DecodeConfig().chunk_frames)
    samples = [s for chunk in decoder.decode(str(path)) for s in zip(chunk.times, chunk.frames, strict=True)]
    assert len(samples) == -(-len(index.pts) // 7)
    end = max(index.ends[-1], index.starts[-1] + 0.04)
    scaler = VideoReformatter()
    for number, (time, embedded) in enumerate(samples[:: 1 + len(samples) // 12]):
        shown = frame_on_screen(str(path), time)
        assert shown.start == pytest.approx(time, abs=1e-3)
        picture = upright(scaler, shown.picture, WIDTH, HEIGHT, Scaling())
        if exact:
            np.testing.assert_array_equal(picture, embedded)
        expected = read_index(embedded)
        assert read_index(picture) == expected
        jpeg = np.asarray(Image.open(io.BytesIO(make_thumbnail(str(path), time, 320))))
        assert read_index(jpeg) == expected
        if number % 4 == 0:
            write_clip(str(path), max(0.0, time + 0.002), min(time + 0.5, end), str(tmp_path / "clip.mp4"))
            assert read_index(first_picture(tmp_path / "clip.mp4")) == expected


@pytest.mark.parametrize("kind", reported_files())
def test_from_a_seek_and_from_the_beginning_the_frames_are_the_same(kind: str | Path, tmp_path: Path) -> None:
    path = str(reported_file(kind, tmp_path))
    every = list(frames_from(path, 0))
    index = index_video(path)
    np.testing.assert_allclose([frame.start for frame in every], index.starts, atol=1e-3)
    for frame, following in zip(every[:-1:25], every[1::25], strict=False):
        assert frame.end == pytest.approx(following.start)
        middle = (frame.start + frame.end) / 2
        assert frame_on_screen(path, middle).start == pytest.approx(frame.start)
    late = [frame.start for frame in frames_from(path, every[-9:][0].start)]
    assert late == pytest.approx([frame.start for frame in every[-9:]])


def test_a_frame_stays_on_screen_until_the_next(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", times=[0, 3.2, 17, 18]))
    assert [f.start for f in frames_of_span(path, 5, 9)] == pytest.approx([3.2])
    assert [f.start for f in frames_of_span(path, 3, 17.5)] == pytest.approx([0, 3.2, 17])
    assert frame_on_screen(path, 1e6).start == pytest.approx(18)
    end = frame_on_screen(path, 1e6).end
    with pytest.raises(EndedError, match=f"the video ends at {end:.2f} s"):
        list(frames_of_span(path, end, end + 1))
