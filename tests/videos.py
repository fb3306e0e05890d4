"""Generated test videos: every frame carries its own index as a 4 x 4 grid of black and white blocks."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GRID = 4


def index_frame(index: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: bit b of `index` is white at row b // 4, column b % 4."""
    bits = (index >> np.arange(GRID * GRID) & 1).astype(np.uint8).reshape(GRID, GRID) * 255
    grey = np.kron(bits, np.ones((height // GRID, width // GRID), np.uint8))
    return np.repeat(grey[..., None], 3, axis=2)


def read_index(frame: np.ndarray) -> int:
    """The index that `index_frame` drew into a decoded (resized, recompressed) frame."""
    rows, columns = (
        (np.arange(GRID) * 2 + 1) * frame.shape[0] // 8,
        (np.arange(GRID) * 2 + 1) * frame.shape[1] // 8,
    )
    return int((frame[np.ix_(rows, columns)].mean(axis=2).ravel() > 127) @ (1 << np.arange(GRID * GRID)))


def write_video(
    path: str | Path,
    seconds: float = 4,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (64, 48),
    gop: int = 12,
    b_frames: int = 2,
    codec: str = "libx264",
    start: float = 0.0,
    times: Iterable[float] | None = None,
    rotation: int = 0,
    sound: float = 0.0,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    base: Fraction = Fraction(1, 90000),
) -> Path:
    """Write frames 0, 1, 2 ... at `fps` for `seconds`, or at the given `times` (s), all moved by `start`.

    `rotation` is the display matrix's angle in degrees, counter-clockwise; `sound` seconds of silence
    from 0 on accompany the pictures. Not every codec takes a time `base` as fine as the default.
    """
    rate = Fraction(fps).limit_denominator(1001)
    stamps = [i / rate for i in range(round(seconds * rate))] if times is None else list(times)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = base
        stream.options = {"g": str(gop), "bf": str(b_frames), "sc_threshold": "0", **(options or {})}
        stream.thread_count = 1
        silence = container.add_stream("aac", rate=48000) if sound else None
        if rotation:
            stream.set_display_rotation(rotation)
        for index, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(index_frame(index, *size))
            frame.pts, frame.time_base = round((stamp + start) / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for start in range(0, round(sound * 48000), 1024) if silence else ():
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            noise.sample_rate, noise.pts, noise.time_base = 48000, start, Fraction(1, 48000)
            container.mux(silence.encode(noise))
        if silence:
            container.mux(silence.encode())
    return Path(path)


def write_pixel(path: str | Path, codec: str, pix_fmt: str, seconds: float = 2) -> Path:
    """A video of 1 x 1 pixel, black and white in turn."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 1, 1, pix_fmt
        stream.thread_count = 1
        for index in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((1, 1, 3), index % 2 * 255, np.uint8))
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return Path(path)
