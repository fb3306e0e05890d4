"""Small videos of the kinds that public bug reports are about; every frame carries its number."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.videos import index_frame, write_video


def _spliced(path: Path, *parts: dict[str, float]) -> Path:
    """Transport streams one after the other, each with a clock of its own."""
    data = b""
    for part in parts:
        data += write_video(path, gop=10, **part).read_bytes()  # type: ignore[arg-type]
    path.write_bytes(data)
    return path


def _cut_packet(path: Path) -> Path:
    data = write_video(path, seconds=3, gop=10).read_bytes()
    path.write_bytes(data[100:])
    return path


def _not_finished(path: Path) -> Path:
    data = write_video(path, seconds=2).read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def _trimmed(path: Path) -> Path:
    """An edit list shows the first 2 of 4 seconds."""
    data = bytearray(write_video(path, seconds=4, gop=20).read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = (2000).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def _mirrored(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """With the upper left part of a display matrix, as cameras that face their user write it."""
    data = bytearray(write_video(path, seconds=3).read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def _unknown_sound(path: Path) -> Path:
    path.write_bytes(
        write_video(path, seconds=3, sound=3).read_bytes().replace(b"mp4a", b"apac").replace(b"esds", b"none")
    )
    return path


def write_streams(path: Path, small_first: bool = False, sound: str = "", rate: int = 48000) -> Path:
    """3 s at 25 frames a second; `small_first`: after a smaller picture of its own, which no one searches."""
    with av.open(str(path), "w") as container:
        sizes = ([(32, 24)] if small_first else []) + [(64, 48)]
        streams = []
        for size in sizes:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"g": "20"}
            streams.append((stream, size))
        track = container.add_stream(sound, rate=rate) if sound else None
        for index in range(75):
            for stream, size in streams:
                number = index if size == sizes[-1] else 0
                container.mux(stream.encode(av.VideoFrame.from_ndarray(index_frame(number, *size))))
        for stream, _ in streams:
            container.mux(stream.encode())
        if track is not None:
            for start in range(0, 3 * rate, 4096):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 4096), np.int16), "s16", "stereo")
                silence.sample_rate, silence.pts, silence.time_base = rate, start, Fraction(1, rate)
                container.mux(track.encode(silence))
            container.mux(track.encode())
    return path


# File name -> how it is made.
KINDS: dict[str, Callable[[Path], Path]] = {
    "long_gops.ts": lambda path: write_video(path, seconds=6, gop=50),
    "old.mpg": lambda path: write_video(path, seconds=3, codec="mpeg1video", base=Fraction(1, 25)),
    "old.flv": lambda path: write_video(path, seconds=3, codec="flv", b_frames=0),
    "old.avi": lambda path: write_video(path, seconds=3, b_frames=0),
    "rotated.mp4": lambda path: write_video(path, seconds=3, rotation=90),
    "mirrored.mp4": lambda path: _mirrored(path, (-1, 0, 0, 1)),
    "mirrored_and_turned.mp4": lambda path: _mirrored(path, (0, 1, 1, 0)),
    "wide_pixels.mp4": lambda path: write_video(path, seconds=3, options={"x264-params": "sar=2/1"}),
    "two_pictures.mkv": lambda path: write_streams(path, small_first=True, sound="aac"),
    "fine_sound.mkv": lambda path: write_streams(path, sound="flac", rate=96000),
    "unknown_sound.mp4": _unknown_sound,
    "still.mp4": lambda path: write_video(path, times=[0, 0.2, 3.1, 3.14, 6]),
    "late.mp4": lambda path: write_video(path, seconds=3, start=7.5),
    "late.mkv": lambda path: write_video(path, seconds=3, start=3600),
    "recorded.webm": lambda path: write_video(
        path, seconds=3, codec="libvpx", b_frames=0, muxer={"live": "1"}
    ),
    "open_gops.mkv": lambda path: write_video(path, seconds=3, gop=10, options={"x264-params": "open-gop=1"}),
    "refreshed.mp4": lambda path: write_video(path, seconds=3, options={"intra-refresh": "1"}),
    "hidden_start.mp4": lambda path: write_video(path, seconds=3, gop=50, start=-0.52),
    "trimmed.mp4": _trimmed,
    "sound_first.mp4": lambda path: write_video(path, seconds=3, start=1.2, sound=4.2),
    "clock_restarts.ts": lambda path: _spliced(path, {"seconds": 2}, {"seconds": 2}),
    "spliced.mpg": lambda path: _spliced(
        path, *2 * [{"seconds": 2, "codec": "mpeg2video", "base": Fraction(1, 25)}]
    ),
    "clock_jumps.ts": lambda path: _spliced(path, {"seconds": 2}, {"seconds": 2, "start": 50_000}),
    "cut_packet.ts": _cut_packet,
}
NOT_FINISHED = _not_finished


def reported_files() -> list[object]:
    """The names of KINDS; with VMR_BENCHMARK_DATA also the files of its folder videos/reported."""
    folder = Path(os.environ.get("VMR_BENCHMARK_DATA", "/nowhere")) / "videos" / "reported"
    files = [path for path in sorted(folder.glob("*")) if path.name != "nomoov.mp4"]
    return [*KINDS, *(pytest.param(path, id=path.name) for path in files)]


def reported_file(kind: str | Path, folder: Path) -> Path:
    """The file of one of `reported_files()`, made in `folder` if it is a name."""
    return kind if isinstance(kind, Path) else KINDS[kind](folder / kind)
