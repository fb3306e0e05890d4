"""Thumbnails and clips of video files, for people to look at: the frames that embedding saw.

    python -m vmr_ray.video.clips thumbnail FILE SECOND WIDTH > picture.jpg
    python -m vmr_ray.video.clips clip FILE START END OUT.mp4
    python -m vmr_ray.video.clips playback FILE > playback.json

`thumbnail`, `clip` and `playback` run this module as a separate process: a file that crashes or stalls the
decoder costs one answer, not the service.
"""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import av

from vmr_ray.errors import VmrError, is_full_disk
from vmr_ray.storage import filesystem, refuse_input, temporary_name
from vmr_ray.video.clip_file import write_clip
from vmr_ray.video.decode.isolation import isolate
from vmr_ray.video.decode.on_screen import EndedError, FarError, clock_of, frame_on_screen, shown_first
from vmr_ray.video.decode.picture import jpeg
from vmr_ray.video.decode.sniff import refusal

MAX_CLIP = 600.0  # seconds
_MEMORY_GB = 8.0
# Exit codes: the file is readable, but the span lies behind its end; there is no room for the clip; too many
# frames would have to be decoded.
_ENDED, _FULL, _FAR = 3, 4, 5
_POLL = 0.2  # seconds between two looks at whether a process is still wanted
_DESCRIPTORS = Path("/proc/self/fd")  # of Linux: opens the file of a descriptor again


def thumbnail(
    path: str | Path,
    second: float,
    width: int = 320,
    timeout: float = 20,
    descriptor: int | None = None,
    max_decoded: int | None = None,
) -> bytes:
    """The frame on screen at `second` as a JPEG of at most `width` pixels in width.

    Args:
        descriptor: of the open file, which is read instead of what `path` leads to by now.
        max_decoded: limit to the frames that are decoded for it.

    Raises:
        VmrError: the file cannot be read in `timeout` seconds.
        FarError: the limit is reached.
    """
    limit = [] if max_decoded is None else [str(max_decoded)]
    return _run("thumbnail", path, [str(second), str(width), *limit], timeout, descriptor)


def clip(
    path: str | Path,
    start: float,
    end: float,
    out: str | Path,
    timeout: float = 300,
    descriptor: int | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Cut `[start, end)` seconds of a video, with sound, into the MP4 file `out`.

    The cut is exact to the frame, so the clip is re-encoded. It begins with the frame on screen at `start`.

    Args:
        descriptor: as for `thumbnail`.
        stop: when it is set, the decoder is ended.

    Raises:
        VmrError: the span is empty, longer than MAX_CLIP or behind the video's end, the file cannot be read,
            `out` is the video itself, or `stop` was set.
        OSError: `out` cannot be written.
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
        _run("clip", path, [str(start), str(end), temporary], timeout, descriptor, stop)
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


def playback(path: str | Path, timeout: float = 20, descriptor: int | None = None) -> Playback:
    """How a player shows the file, read from the file's beginning; `descriptor` as for `thumbnail`.

    Raises:
        VmrError: the file cannot be read in `timeout` seconds.
    """
    return Playback(**json.loads(_run("playback", path, [], timeout, descriptor)))


def _run(
    verb: str,
    path: str | Path,
    arguments: list[str],
    timeout: float,
    descriptor: int | None,
    stop: threading.Event | None = None,
) -> bytes:
    name, opened = Path(path).name, str(path)
    passed: tuple[int, ...] = ()
    if descriptor is not None and _DESCRIPTORS.is_dir():
        opened, passed = str(_DESCRIPTORS / str(descriptor)), (descriptor,)
    command = [sys.executable, "-m", "vmr_ray.video.clips", verb, opened, *arguments]
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=passed
    ) as process:
        answer = None
        while answer is None:
            if time.monotonic() > deadline or (stop and stop.is_set()):
                process.kill()
                raise VmrError(f"{name} could not be read in {timeout:g} s")
            with suppress(subprocess.TimeoutExpired):
                answer, errors = process.communicate(timeout=_POLL)
    if process.returncode:
        reason = errors.decode(errors="replace").strip().rpartition("\n")[2]
        if process.returncode == _ENDED:
            raise VmrError(f"{name}: {reason}")
        if process.returncode == _FAR:
            raise FarError(name)
        if process.returncode == _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise VmrError(f"{name} could not be read: {reason or f'the decoder died ({process.returncode})'}")
    return answer


def make_thumbnail(path: str, second: float, width: int, max_decoded: int | None = None) -> bytes:
    """`thumbnail` in this process. Raises FarError as `frame_on_screen` does."""
    shown = frame_on_screen(path, second, max_decoded)
    return jpeg(shown.picture, shown.aspect, width)


def narrowed(picture: bytes, width: int) -> bytes:
    """A JPEG that `thumbnail` made, at most `width` pixels wide."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture))
    if image.width <= width:
        return picture
    out = io.BytesIO()
    image.resize((width, max(1, round(image.height * width / image.width)))).save(out, "JPEG", quality=80)
    return out.getvalue()


def main(arguments: list[str]) -> None:
    verb, path, *rest = arguments
    isolate(_MEMORY_GB)
    try:
        if reason := refusal(path):
            sys.exit(reason.replace(path, "it", 1))
        if verb == "thumbnail":
            sys.stdout.buffer.write(make_thumbnail(path, float(rest[0]), *map(int, rest[1:])))
        elif verb == "playback":
            # A clock that begins below 0 is moved to 0 by players.
            print(json.dumps(asdict(Playback(max(0.0, clock_of(path)[0]), shown_first(path)))))
        else:
            write_clip(path, float(rest[0]), float(rest[1]), rest[2])
    except FarError:
        sys.exit(_FAR)
    except EndedError as error:
        print(error, file=sys.stderr)
        sys.exit(_ENDED)
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        if is_full_disk(error):
            sys.exit(_FULL)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        sys.exit(reason or type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1:])
