"""Write pictures as an H.264 video."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
from PIL import Image


def write_video(path: Path, pictures: Iterable[Image.Image], fps: int, width: int, height: int) -> None:
    """Write the RGB pictures as H.264; under its own name the file is never half-written.

    One thread, so that the same pictures give the same file.
    """
    partial = path.with_name(f".{path.name}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    partial.replace(path)
