"""H.264 files to measure with: made here, so that their GOPs and sizes are known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 25


def render(path: Path, size: tuple[int, int], seconds: float, gop_seconds: float) -> Path:
    """A camera that pans over a rough surface, with x264's own choice of B-frames."""
    width, height = size
    grain = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    surface = np.asarray(Image.fromarray(grain).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        gop = str(round(gop_seconds * FPS))
        stream.options = {"preset": "veryfast", "crf": "28", "g": gop, "keyint_min": gop, "sc_threshold": "0"}
        for i in range(round(seconds * FPS)):
            x, y = 7 * i % width, 3 * i % height
            view = np.ascontiguousarray(surface[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view)))
        container.mux(stream.encode())
    return part.rename(path)


def repeat(source: Path, path: Path, times: int) -> Path:
    """The packets of `source` again and again: a long file without encoding one."""
    with av.open(str(path), "w") as new:
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
    return path
