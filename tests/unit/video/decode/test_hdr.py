"""HDR pictures look as they do on an SDR screen, wherever they are shown."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import write_video
from vmr_ray.config import DecodeConfig
from vmr_ray.video.clip_file import write_clip
from vmr_ray.video.clips import make_thumbnail
from vmr_ray.video.decode import FrameDecoder
from vmr_ray.video.decode.hdr import as_sdr

# Linear light with BT.709's primaries, 1 is reference white (203 cd/m2).
COLOURS = np.array(
    [
        [0, 0, 0],
        [0.18, 0.18, 0.18],
        [0.5, 0.5, 0.5],
        [1, 1, 1],
        [4, 4, 4],
        [0.5, 0, 0],
        [0, 0.5, 0],
        [0, 0, 0.5],
    ]
)
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
LUMA = np.array([0.2627, 0.6780, 0.0593])
TRANSFERS = {"pq": 16, "hlg": 18}


def signals(name: str) -> np.ndarray:
    """[8, 3]: the colours as PQ or HLG encodes them, by the formulas of ITU-R BT.2100."""
    light = COLOURS @ TO_2020.T * 203
    if name == "pq":
        power = (light / 10_000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    display = light / 1000
    scene = display * (display @ LUMA)[:, None].clip(1e-12) ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene, 0.3) - 0.28466892) + 0.55991073,
    )


def write_hdr(path: Path, name: str, rotation: int = 0) -> Path:
    """Eight stripes of 32 pixels, 2 s, HEVC of 10 bits."""
    signal = signals(name)
    luma = signal @ LUMA
    blue, red = (signal[:, 2] - luma) / (2 * (1 - LUMA[2])), (signal[:, 0] - luma) / (2 * (1 - LUMA[0]))
    frame = av.VideoFrame(256, 64, "yuv420p10le")
    for plane, values in zip(frame.planes, (64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red), strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
        rows[:, : plane.width] = np.repeat(values.round(), plane.width // 8)
        plane.update(rows.tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = 256, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = (
            9,
            TRANSFERS[name],
            9,
            1,
        )
        stream.options = {"x265-params": "log-level=none:crf=5:bframes=0"}
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(50):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def expected() -> np.ndarray:
    """[8, 3]: as an SDR video of the same scene encodes them for a screen of ITU-R BT.1886."""
    return 255 * COLOURS.clip(0, 1) ** (1 / 2.4)


@pytest.mark.parametrize("name", TRANSFERS)
def test_embedding_thumbnail_and_clip_show_what_sdr_shows(tmp_path: Path, name: str) -> None:
    path = str(write_hdr(tmp_path / "a.mp4", name))
    with FrameDecoder(DecodeConfig(sampling="fps=1"), 256, 64) as decoder:
        embedded = next(decoder.decode(path)).frames[1]
    thumbnail = np.asarray(Image.open(io.BytesIO(make_thumbnail(path, 1, 256))))
    write_clip(path, 0.5, 1.5, str(tmp_path / "clip.mp4"))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range) == (1, 1, 1, 1)
        clip = frame.to_ndarray(format="rgb24")
    for picture in (embedded, thumbnail, clip):
        shown = picture[32, 16::32].astype(float)
        assert np.abs(shown - expected())[[0, 1, 2]].max() < 6  # darker than the knee: the same
        assert np.abs(shown - expected())[5:].max() < 40  # colours keep their hue and strength
        white, highlight = shown[3], shown[4]
        assert white.min() > 225 and white.max() < 245 < highlight.min()  # white is not clipped
    assert np.abs(embedded.astype(int) - clip)[:, 8::16].mean() < 4


def test_rotated_hdr_stands_upright(tmp_path: Path) -> None:
    path = str(write_hdr(tmp_path / "a.mp4", "pq", rotation=90))
    picture = np.asarray(Image.open(io.BytesIO(make_thumbnail(path, 1, 64))))
    assert picture.shape == (256, 64, 3)
    assert np.abs(picture[::-1][16::32, 32][:3] - expected()[:3]).max() < 6
    write_clip(path, 0, 1, str(tmp_path / "clip.mp4"))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        clip = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(clip[16::32, 32].astype(int) - picture[16::32, 32]).max() < 8


def test_sdr_is_left_as_it_is(tmp_path: Path) -> None:
    with av.open(str(write_video(tmp_path / "a.mp4", seconds=1))) as container:
        frame = next(container.decode(video=0))
        assert as_sdr(frame) is frame
