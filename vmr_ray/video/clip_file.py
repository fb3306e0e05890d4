"""Encode a span of a video, with sound, into an MP4 file that every browser plays."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from vmr_ray.video.decode.clock import Clock
from vmr_ray.video.decode.frame_index import OPTIONS
from vmr_ray.video.decode.hdr import as_sdr, is_hdr
from vmr_ray.video.decode.on_screen import ShownFrame, clock_of, frames_of_span
from vmr_ray.video.decode.pyav_reader import orientation

_CLOCK = Fraction(1, 90_000)
_SOUND_RATE, _SOUND_FRAME = 48_000, 1024  # samples a second, samples a frame of AAC
_STEPS_BACK = (0.0, 1.0, 5.0, 30.0)  # seconds before the span at which its sound is sought

_Timed = tuple[float, int, av.VideoFrame | av.AudioFrame]  # seconds, 0 for pictures, the frame


def write_clip(path: str, start: float, end: float, out: str) -> None:
    """Cut `[start, end)` seconds. Sound that cannot be decoded is left out.

    Raises:
        EndedError: the video ends before `start`.
        ValueError: no frame can be decoded.
        av.FFmpegError: the file is not readable.
    """
    shown = frames_of_span(path, start, end)
    first = next(shown)
    upright = _Upright(first)
    sounds = _sound(path, start, end)
    first_sound = next(sounds, None)
    with av.open(out, "w", format="mp4", options={"movflags": "+faststart"}) as target:
        picture = target.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        picture.width, picture.height = upright.size
        picture.pix_fmt = "yuv420p"
        picture.codec_context.time_base = _CLOCK
        picture.codec_context.thread_count = 2
        for name, value in _colours(first.picture).items():
            with suppress(ValueError, AttributeError):
                setattr(picture.codec_context, name, value)
        track: Any = None
        if first_sound is not None:
            track = target.add_stream("aac", rate=_SOUND_RATE)
            track.layout = first_sound[2].layout
        pictures = _pictures(first, shown, start, end, upright)
        all_sounds = iter(()) if first_sound is None else _chain(first_sound, sounds)
        for _, kind, frame in heapq.merge(pictures, all_sounds, key=lambda item: item[:2]):
            target.mux((track if kind else picture).encode(frame))
        target.mux(picture.encode(None))
        if track is not None:
            target.mux(track.encode(None))


def _colours(picture: av.VideoFrame) -> dict[str, int]:
    """How the clip's pictures declare their colours: as the video does, and HDR ones as SDR."""
    names = ("color_primaries", "color_trc", "colorspace", "color_range")
    if is_hdr(picture.color_trc):
        return dict.fromkeys(names, 1)  # BT.709, limited range
    return {name: int(value) for name in names if (value := getattr(picture, name, None)) is not None}


def _chain(first: _Timed, rest: Iterator[_Timed]) -> Iterator[_Timed]:
    yield first
    yield from rest


def _pictures(
    first: ShownFrame, rest: Iterator[ShownFrame], start: float, end: float, upright: _Upright
) -> Iterator[_Timed]:
    """The clip's pictures; the first is at 0. A last one that stays on screen is repeated at its end, because
    the clip would end with it."""
    at, shown, gap = 0.0, first, 1 / 25
    while True:
        yield at, 0, upright.frame(shown.picture, at)
        following = next(rest, None)
        if following is None:
            break
        before, at, shown = at, max(0.0, following.start - start), following
        gap = at - before if at > before else gap
    last = min(end, shown.end) - start - min(gap, 0.04)
    if last > at + 0.01:
        yield last, 0, upright.frame(shown.picture, last)


class _Upright:
    """Makes a clip's pictures: rotated as the display matrix demands, of square pixels, with even sides."""

    def __init__(self, first: ShownFrame):
        self._turns, self._mirrored = orientation(first.picture)
        size = (round(first.picture.width * first.aspect), first.picture.height)
        across, down = size[::-1] if self._turns % 2 else size
        self.size = (max(2, across // 2 * 2), max(2, down // 2 * 2))
        self._graph: av.filter.Graph | None = None
        self._layout: tuple[int, int, str] | None = None

    def frame(self, picture: av.VideoFrame, at: float) -> av.VideoFrame:
        """The picture at `at` seconds of the clip. The frame itself is left as it was."""
        if is_hdr(picture.color_trc):
            result = self._rotated(as_sdr(picture)).reformat(
                *self.size, "yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
        else:
            result = self._rotated(picture).reformat(*self.size, "yuv420p")
        if result is picture:
            result = picture.reformat(*self.size, "rgb24").reformat(*self.size, "yuv420p")
        result.pts, result.time_base = round(at / _CLOCK), _CLOCK
        result.pict_type = PictureType.NONE
        return result

    def _rotated(self, picture: av.VideoFrame) -> av.VideoFrame:
        if not self._turns and not self._mirrored:
            return picture
        layout = (picture.width, picture.height, picture.format.name)
        if self._graph is None or self._layout != layout:
            filters: list[tuple[str, str | None]] = [("vflip", None)] if self._mirrored else []
            filters += [("transpose", "cclock")] * self._turns
            graph = av.filter.Graph()
            width, height, name = layout
            node = graph.add_buffer(width=width, height=height, format=name, time_base=_CLOCK)
            for filter_name, argument in filters:
                following = graph.add(filter_name, argument)
                node.link_to(following)
                node = following
            node.link_to(graph.add("buffersink"))
            graph.configure()
            self._graph, self._layout = graph, layout
        self._graph.push(picture)
        return self._graph.pull()


def _sound(path: str, start: float, end: float) -> Iterator[_Timed]:
    """The sound of `[start, end)` from the first stream that can be decoded, as AAC takes it."""
    with av.open(str(Path(path).absolute()), options=OPTIONS) as container:
        streams = [
            stream.index
            for stream in container.streams.audio
            if stream.codec_context is not None and stream.codec_context.codec is not None
        ]
    zero, jumps = clock_of(path) if streams else (0.0, False)
    for number in streams:
        frames = _resampled(path, number, zero, jumps, start, end)
        first = next(frames, None)
        if first is not None:
            yield first
            yield from frames
            return


def _resampled(
    path: str, number: int, zero: float, jumps: bool, start: float, end: float
) -> Iterator[_Timed]:
    resampler: av.AudioResampler | None = None
    samples = 0
    with suppress(av.FFmpegError, ValueError):
        for at, frame in _decoded_sound(path, number, zero, jumps, start, end):
            if resampler is None:
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
                resampler = av.AudioResampler("fltp", layout, _SOUND_RATE, frame_size=_SOUND_FRAME)
                samples = round((at - start) * _SOUND_RATE)
            frame.pts = None
            for result in resampler.resample(frame):
                result.pts, result.time_base = samples, Fraction(1, _SOUND_RATE)
                yield samples / _SOUND_RATE, 1, result
                samples += result.samples


def _decoded_sound(
    path: str, number: int, zero: float, jumps: bool, start: float, end: float
) -> Iterator[tuple[float, av.AudioFrame]]:
    """Frames of sound and the seconds at which they begin, from the first one at or after `start`."""
    for back in (None,) if jumps else (*_STEPS_BACK, None):
        with av.open(str(Path(path).absolute()), options=OPTIONS) as container:
            stream = container.streams[number]
            if back is not None:
                with suppress(av.FFmpegError):
                    container.seek(int((zero + start - back) * av.time_base))
            clock, early = Clock(container, stream), back is None
            for packet in clock.packets(container, stream):
                frames: list[av.AudioFrame] = []
                with suppress(av.FFmpegError):
                    frames = packet.decode()
                for frame in frames:
                    if frame.time is None:
                        continue
                    at = frame.time - zero
                    if at >= end:
                        return
                    if at < start:
                        early = True
                    elif not early:
                        break  # the seek went too far
                    else:
                        yield at, frame
                else:
                    continue
                break
            else:
                return
