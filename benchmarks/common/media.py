"""H.264 files that are made here, so that their sizes, rates and key frames are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FPS = 25  # of `render`
Picture = NDArray[np.uint8]  # [height, width, 3], RGB


def write_video(
    path: Path, pictures: Iterable[Picture], fps: int, options: dict[str, str], threads: int = 0
) -> Path:
    """The pictures as H.264; the file appears when it is complete.

    Args:
        options: of libx264.
        threads: of the encoder, 0 for as many as it likes. With 1 every machine writes the same file.
    """
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.pix_fmt, stream.options = "yuv420p", options
        stream.codec_context.thread_count = threads
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
    return part.rename(path)


def render(path: Path, size: tuple[int, int], seconds: float, gop_seconds: float) -> Path:
    """A camera that pans over a rough surface, a key frame every `gop_seconds`, x264's own B-frames."""
    gop = str(round(gop_seconds * FPS))
    options = {"preset": "veryfast", "crf": "28", "g": gop, "keyint_min": gop, "sc_threshold": "0"}
    return write_video(path, _pan(size, round(seconds * FPS)), FPS, options)


def _pan(size: tuple[int, int], frames: int) -> Iterator[Picture]:
    width, height = size
    grain = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    surface = np.asarray(Image.fromarray(grain).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    for i in range(frames):
        x, y = 7 * i % width, 3 * i % height
        yield surface[y : y + height, x : x + width]


def repeat(source: Path, path: Path, times: int) -> Path:
    """The packets of `source` again and again: a long file without encoding one."""
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as new:
        stream = None
        shift = 0
        for _ in range(times):
            with av.open(str(source)) as old:
                video = old.streams.video[0]
                stream = stream or new.add_stream_from_template(video)
                length = round(Fraction(video.frames, FPS) / video.time_base)
                for packet in old.demux(video):
                    if packet.dts is not None:
                        packet.pts += shift
                        packet.dts += shift
                        packet.stream = stream
                        new.mux(packet)
                shift += length
    return part.rename(path)
