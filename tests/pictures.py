"""Generated pictures as photos and as videos, for tests of what becomes of their pixels."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

# Far from each other in RGB, so that the nearest one to a decoded pixel is certain.
COLOURS = list(itertools.product((20, 130, 240), (20, 240), (20, 240)))
PICTURES, GOP = 3, 10  # each picture is shown for one GOP


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Coarse colours, and fine stripes that only a filter with antialiasing keeps quiet."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    stripes = 40 * np.sin(np.arange(width) * 2.1)[None, :, None]
    return (smooth + stripes).clip(0, 255).astype(np.uint8)


def write_pictures(path: Path, width: int, height: int, rotation: int = 0, b_frames: int = 0) -> Path:
    """`PICTURES` pictures, each `GOP` times, at ten frames a second; `rotation` as in `write_video`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": str(GOP), "bf": str(b_frames), "sc_threshold": "0", "preset": "veryfast"}
        stream.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(PICTURES * GOP):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(width, height, i // GOP))))
        container.mux(stream.encode(None))
    return path


def whole_frames(path: Path) -> list[np.ndarray]:
    """The first frame of each GOP in full resolution, upright."""
    with av.open(str(path)) as container:
        return [
            np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
            for i, frame in enumerate(container.decode(video=0))
            if i % GOP == 0
        ]


def jpeg(colour: Sequence[int], size: tuple[int, int] = (96, 64)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, tuple(colour)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_photos(folder: Path, colours: Sequence[Sequence[int]] = COLOURS) -> Path:
    """A folder with a photo a colour, two captions each."""
    folder.mkdir()
    rows = []
    for number, colour in enumerate(colours):
        name = f"{number:02d}.jpg"
        (folder / name).write_bytes(jpeg(colour, (96, 64) if number % 2 else (64, 96)))
        rows += [{"file": name, "caption": f"{text} {number}"} for text in ("a wall of paint", "one colour,")]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
