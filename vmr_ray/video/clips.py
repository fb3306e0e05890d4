"""Thumbnails and clips of video files, for people to look at.

    python -m vmr_ray.video.clips thumbnail FILE SECOND WIDTH > picture.jpg
    python -m vmr_ray.video.clips clip FILE START END OUT.mp4

`thumbnail` and `clip` run this module as a separate process: a file that crashes or stalls the decoder
costs one answer, not the service.
"""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av

from vmr_ray.errors import VmrError

# As in decode.frame_index: a container cannot make the demuxer read anything else.
_OPTIONS = {"protocol_whitelist": "file"}
MAX_CLIP = 600.0  # seconds


def thumbnail(path: str | Path, second: float, width: int = 320, timeout: float = 20) -> bytes:
    """The frame on screen at `second` as a JPEG of at most `width` pixels in width.

    Raises:
        VmrError: the file cannot be read in `timeout` seconds.
    """
    return _run(["thumbnail", str(path), str(second), str(width)], path, timeout)


def clip(path: str | Path, start: float, end: float, out: str | Path, timeout: float = 300) -> Path:
    """Cut `[start, end)` seconds of a video, with sound, into the MP4 file `out`.

    The cut is exact to the frame, so the clip is re-encoded.

    Raises:
        VmrError: the span is empty or longer than MAX_CLIP, or the file cannot be read.
    """
    if not 0 <= start < end:
        raise VmrError(
            f"the clip ends at {end:g} s and starts at {start:g} s: the end must come after the start"
        )
    if end - start > MAX_CLIP:
        raise VmrError(f"the clip would be {end - start:.0f} s long, at most {MAX_CLIP:.0f} s are cut")
    _run(["clip", str(path), str(start), str(end), str(out)], path, timeout)
    return Path(out)


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
        raise VmrError(f"{name} could not be read: {reason or f'the decoder died ({done.returncode})'}")
    return done.stdout


def _thumbnail(path: str, second: float, width: int) -> bytes:
    with av.open(str(Path(path).absolute()), options=_OPTIONS) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        begin = (container.start_time or 0) / av.time_base
        assert stream.time_base is not None
        container.seek(int((begin + max(second, 0)) * av.time_base), backward=True)
        best = None
        for frame in container.decode(stream):
            if best is not None and frame.time is not None and frame.time > begin + second:
                break
            best = frame
        if best is None:
            raise ValueError("no frame could be decoded")
        picture = best.to_image()
    picture.thumbnail((width, 10 * width))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


def _clip(path: str, start: float, end: float, out: str) -> None:
    with (
        av.open(str(Path(path).absolute()), options=_OPTIONS) as source,
        av.open(out, "w", format="mp4", options={"movflags": "+faststart"}) as target,
    ):
        video = source.streams.video[0]
        sound = source.streams.audio[0] if source.streams.audio else None
        begin = (source.start_time or 0) / av.time_base
        low, high = begin + start, begin + end
        rate = video.average_rate or Fraction(25)
        picture = target.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
        # 4:2:0 needs even sides.
        picture.width, picture.height = video.width // 2 * 2, video.height // 2 * 2
        picture.pix_fmt = "yuv420p"
        clock = Fraction(1, 90_000)
        picture.codec_context.time_base = clock
        track = target.add_stream("aac", rate=sound.rate) if sound else None
        source.seek(int(low * av.time_base), backward=True)
        streams = [video] + ([sound] if sound else [])
        ended = set()
        for frame in source.decode(*streams):
            if frame.time is None:
                continue
            is_picture = isinstance(frame, av.VideoFrame)
            if frame.time >= high:
                ended.add(is_picture)
                if len(ended) == len(streams):
                    break
                continue
            if frame.time < low:
                continue
            frame.pts, frame.time_base = round((frame.time - low) / clock), clock
            if isinstance(frame, av.VideoFrame):
                frame.pict_type = av.video.frame.PictureType.NONE
                small = frame.reformat(picture.width, picture.height, "yuv420p")
                target.mux(picture.encode(small))
            elif track is not None:
                target.mux(track.encode(frame))
        target.mux(picture.encode(None))
        if track is not None:
            target.mux(track.encode(None))


def main(arguments: list[str]) -> None:
    verb, path, *rest = arguments
    try:
        if verb == "thumbnail":
            sys.stdout.buffer.write(_thumbnail(path, float(rest[0]), int(rest[1])))
        else:
            _clip(path, float(rest[0]), float(rest[1]), rest[2])
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        sys.exit(reason or type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1:])
