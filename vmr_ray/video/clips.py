"""Thumbnails and clips of video files, for people to look at: the frames that embedding saw.

    python -m vmr_ray.video.clips thumbnail FILE SECOND WIDTH > picture.jpg
    python -m vmr_ray.video.clips clip FILE START END OUT.mp4
    python -m vmr_ray.video.clips playback FILE > playback.json

`thumbnail`, `clip` and `playback` run this module as a separate process: a file that crashes or stalls the
decoder costs one answer, not the service.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vmr_ray.errors import VmrError
from vmr_ray.storage import filesystem, refuse_input, temporary_name
from vmr_ray.video.clip_file import write_clip
from vmr_ray.video.decode.isolation import isolate
from vmr_ray.video.decode.on_screen import EndedError, clock_of, frame_on_screen, shown_first
from vmr_ray.video.decode.pyav_reader import quarter_turns
from vmr_ray.video.decode.sniff import refusal

MAX_CLIP = 600.0  # seconds
_MEMORY_GB = 8.0
_ENDED = 3  # exit code: the file is readable, but the span lies behind its end


def thumbnail(path: str | Path, second: float, width: int = 320, timeout: float = 20) -> bytes:
    """The frame on screen at `second` as a JPEG of at most `width` pixels in width.

    Raises:
        VmrError: the file cannot be read in `timeout` seconds.
    """
    return _run(["thumbnail", str(path), str(second), str(width)], path, timeout)


def clip(path: str | Path, start: float, end: float, out: str | Path, timeout: float = 300) -> Path:
    """Cut `[start, end)` seconds of a video, with sound, into the MP4 file `out`.

    The cut is exact to the frame, so the clip is re-encoded. It begins with the frame on screen at `start`.

    Raises:
        VmrError: the span is empty, longer than MAX_CLIP or behind the video's end, the file cannot be read,
            or `out` is the video itself.
    """
    if not 0 <= start < end:
        raise VmrError(
            f"the clip ends at {end:g} s and starts at {start:g} s: the end must come after the start"
        )
    if end - start > MAX_CLIP:
        raise VmrError(f"the clip would be {end - start:.0f} s long, at most {MAX_CLIP:.0f} s are cut")
    refuse_input(out, [path])
    files, target = filesystem(str(out))
    with temporary_name(files, target) as temporary:
        _run(["clip", str(path), str(start), str(end), temporary], path, timeout)
        Path(temporary).replace(target)
    return Path(out)


@dataclass(frozen=True)
class Playback:
    """How a player shows a file.

    Attributes:
        begins: what its clock shows at second 0 of the video.
        searched_stream: it shows the stream that was searched.
    """

    begins: float
    searched_stream: bool


def playback(path: str | Path, timeout: float = 20) -> Playback:
    """How a player shows the file, read from the file's beginning.

    Raises:
        VmrError: the file cannot be read in `timeout` seconds.
    """
    return Playback(**json.loads(_run(["playback", str(path)], path, timeout)))


def _run(arguments: list[str], path: str | Path, timeout: float) -> bytes:
    name = Path(path).name
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vmr_ray.video.clips", *arguments], capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise VmrError(f"{name} could not be read in {timeout:g} s") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if done.returncode == _ENDED:
            raise VmrError(f"{name}: {reason}")
        raise VmrError(f"{name} could not be read: {reason or f'the decoder died ({done.returncode})'}")
    return done.stdout


def make_thumbnail(path: str, second: float, width: int) -> bytes:
    """`thumbnail` in this process."""
    from PIL import Image

    shown = frame_on_screen(path, second)
    frame = shown.picture
    turns = quarter_turns(frame)
    size = np.array([frame.width * shown.aspect, frame.height])
    size *= min(1.0, width / size[turns % 2])
    across, down = np.maximum(1, size.round().astype(int)).tolist()
    scaled = VideoReformatter().reformat(
        frame, across, down, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
    )
    out = io.BytesIO()
    Image.fromarray(np.rot90(scaled.to_ndarray(), turns)).save(out, "JPEG", quality=80)
    return out.getvalue()


def main(arguments: list[str]) -> None:
    verb, path, *rest = arguments
    isolate(_MEMORY_GB)
    try:
        if reason := refusal(path):
            sys.exit(reason.replace(path, "it", 1))
        if verb == "thumbnail":
            sys.stdout.buffer.write(make_thumbnail(path, float(rest[0]), int(rest[1])))
        elif verb == "playback":
            # A clock that begins below 0 is moved to 0 by players.
            print(json.dumps(asdict(Playback(max(0.0, clock_of(path)[0]), shown_first(path)))))
        else:
            write_clip(path, float(rest[0]), float(rest[1]), rest[2])
    except EndedError as error:
        print(error, file=sys.stderr)
        sys.exit(_ENDED)
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        sys.exit(reason or type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1:])
