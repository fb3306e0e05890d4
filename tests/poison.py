"""Files that pose as videos: damaged ones, texts, playlists, headers that lie. The same at every call."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from tests.videos import write_pixel, write_video

SUFFIXES = ("mp4", "mkv", "ts", "avi", "mov")
FTYP = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"
EBML = b"\x1a\x45\xdf\xa3\x84\x42\x86\x81\x01"


@dataclass(frozen=True)
class Poison:
    """One file. `stages` are those at which it can fail; empty if it may also embed."""

    kind: str
    suffix: str
    data: bytes
    stages: frozenset[str] = frozenset()


def write_good(folder: Path, count: int) -> list[Path]:
    """Sound videos: five containers, short and long GOPs, whole, fragmented and index-first MP4."""
    folder.mkdir(parents=True)
    gops, rates = (5, 12, 25, 250), (10, 24, 25, 30)
    layouts = ({}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"})
    paths = []
    for i in range(count):
        suffix = SUFFIXES[i % 5]
        path = write_video(
            folder / f"{i:02}.{suffix}",
            seconds=3 + i % 4,
            fps=rates[i % 4],
            gop=gops[i // 5],
            b_frames=0 if suffix == "avi" or i % 3 == 0 else 2,
            muxer=layouts[i % 3] if suffix in ("mp4", "mov") else None,
        )
        paths.append(path)
    return paths


def all_poison(bases: Sequence[Path], folder: Path, url: str) -> list[Poison]:
    """198 files: mutations of the videos `bases`, and texts that send a player to `url`.

    `folder` is room for temporary files.
    """
    rng = np.random.default_rng(20)
    videos = [(path.suffix[1:], path.read_bytes()) for path in bases]
    playlists = list(_playlists(url, dict(videos)))
    return [
        *_mutated("truncated", videos, 28, lambda data: data[: int(rng.uniform(0.02, 0.98) * len(data))]),
        *_mutated("flipped", videos, 28, lambda data: _flipped(data, rng)),
        *_mutated("zeroed", videos, 28, lambda data: _zeroed(data, rng)),
        *(Poison("empty", suffix, b"", frozenset({"sniff"})) for suffix in islice(cycle(SUFFIXES), 14)),
        *islice(_texts(), 14),
        *playlists,
        *_pixels(folder, videos, 20),
        *_headers("zero_duration", _ZERO_DURATION, videos, 22),
        *_headers("ten_thousand_fps", _TEN_THOUSAND_FPS, videos, 44 - len(playlists)),
    ]


def _mutated(
    kind: str, videos: Sequence[tuple[str, bytes]], count: int, mutate: Callable[[bytes], bytes]
) -> Iterator[Poison]:
    for suffix, data in islice(cycle(videos), count):
        yield Poison(kind, suffix, mutate(data))


def _flipped(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), rng.choice([1, 10, 100, 1000])):
        damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def _zeroed(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 4)):
        length = min(len(data) - place, int(rng.uniform(0.001, 0.3) * len(data)))
        damaged[place : place + length] = bytes(length)
    return bytes(damaged)


def _texts() -> Iterator[Poison]:
    texts = (
        b"this is no video\n",
        b"\xef\xbb\xbf<!doctype html><title>404 Not Found</title>\n" * 50,
        b'{"message": "Access Denied"}',
        b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n",
        b"\n" * 5000,
        "ein Text in UTF-16\n".encode("utf-16") * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    )
    for text, suffix in zip(cycle(texts), cycle(SUFFIXES), strict=False):
        yield Poison("text", suffix, text, frozenset({"sniff"}))


# -- playlists: what a player would follow to another address ---------------------------------------


def _playlists(url: str, videos: dict[str, bytes]) -> Iterator[Poison]:
    texts = playlist_texts(url)
    for name, suffix in ((name, suffix) for name in texts for suffix in ("mp4", "mkv")):
        yield Poison("playlist", suffix, texts[name].encode(), frozenset({"sniff"}))
    opened = frozenset({"open"})
    for name, text in texts.items():
        yield Poison("playlist", "ts", _behind_sync_bytes(text.encode()), opened)
        if name != "master":
            yield Poison("playlist", "mp4", FTYP + text.encode(), opened)
    yield Poison("playlist", "mkv", EBML + texts["hls"].encode(), opened)
    yield Poison("playlist", "avi", subtitled_avi(texts["hls"].encode()))
    for kind in (b"url ", b"alis"):
        yield Poison("playlist", "mov", _elsewhere(videos["mov"], kind, f"{url}/samples.mov".encode()))


def playlist_texts(url: str) -> dict[str, str]:
    """HLS, ffconcat, SDP and DASH texts whose media lie at `url`."""
    port = url.rpartition(":")[2]
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}/hls.ts\n#EXT-X-ENDLIST\n",
        "master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9000\n{url}/master.m3u8\n",
        "concat": f"ffconcat version 1.0\nfile '{url}/concat.mp4'\n",
        "sdp": (
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
        ),
        "dash": (
            '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT4S" '
            f'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><BaseURL>{url}/</BaseURL><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="9000">'
            '<SegmentTemplate media="dash.m4s" initialization="dash.mp4" duration="4"/>'
            "</Representation></AdaptationSet></Period></MPD>\n"
        ),
    }


def _behind_sync_bytes(text: bytes) -> bytes:
    """Begins like MPEG-TS, and is text to its end."""
    return (b"G" + b"\n" * 187) * 3 + text


def subtitled_avi(subtitle: bytes) -> bytes:
    """An AVI of one frame, with `subtitle` as a whole file in its subtitle track."""
    picture = struct.pack("<B2x", 255) * 16 * 16

    def chunk(tag: bytes, data: bytes) -> bytes:
        return tag + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def stream(kind: bytes, form: bytes) -> bytes:
        header = kind + struct.pack("<12x4I", 1, 1, 0, 1) + bytes(20)
        return chunk(b"LIST", b"strl" + chunk(b"strh", header) + chunk(b"strf", form))

    form = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 24, 0, len(picture), 0, 0, 0, 0)
    main = chunk(b"avih", struct.pack("<14I", 10**6, 0, 0, 0x10, 1, 0, 2, 0, 16, 16, 0, 0, 0, 0))
    head = chunk(b"LIST", b"hdrl" + main + stream(b"vids" + bytes(4), form) + stream(b"txts" + bytes(4), b""))
    track = b"GAB2\0" + struct.pack("<HIHI", 2, 0, 4, len(subtitle)) + subtitle
    body = chunk(b"LIST", b"movi" + chunk(b"00db", picture) + chunk(b"01tx", track))
    return chunk(b"RIFF", b"AVI " + head + body)


def _elsewhere(mov: bytes, kind: bytes, address: bytes) -> bytes:
    """A MOV whose data reference says that its samples lie at `address`."""
    if kind == b"alis":
        record = bytes(150) + struct.pack(">HH", 2, len(address)) + address + bytes(len(address) % 2)
        record += b"\xff\xff\0\0"
    else:
        record = address + b"\0"
    entry = struct.pack(">I", 12 + len(record)) + kind + bytes(4) + record
    data, place = bytearray(mov), mov.rfind(b"dref")
    (size,) = struct.unpack_from(">I", data, place - 4)
    data[place + 12 : place - 4 + size] = entry
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.rfind(box, 0, place + 4) - 4
        (old,) = struct.unpack_from(">I", data, at)
        struct.pack_into(">I", data, at, old + len(entry) + 16 - size)
    return bytes(data)


# -- one pixel --------------------------------------------------------------------------------------


def _pixels(folder: Path, videos: Sequence[tuple[str, bytes]], count: int) -> Iterator[Poison]:
    """Videos of one pixel, and videos whose header says so."""
    codecs = (
        ("libx264", "yuv444p", "mp4"),
        ("libx264", "yuv444p", "ts"),
        ("ffv1", "bgr0", "mkv"),
        ("ffv1", "yuv444p", "avi"),
        ("mjpeg", "yuvj444p", "avi"),
        ("mjpeg", "yuvj444p", "mov"),
        ("png", "rgb24", "mov"),
        ("libvpx-vp9", "yuv420p", "mkv"),
        ("mpeg4", "yuv420p", "mp4"),
        ("rawvideo", "bgr24", "avi"),
    )
    for codec, pix_fmt, suffix in codecs:
        path = write_pixel(folder / f"pixel.{suffix}", codec, pix_fmt)
        yield Poison("one_pixel", suffix, path.read_bytes())
    yield from _headers("one_pixel", {"mp4": _ONE_PIXEL, "mov": _ONE_PIXEL}, videos, count - len(codecs))


# -- headers that lie -------------------------------------------------------------------------------

Patch = tuple[bytes, int, bytes]  # after which bytes, how far after them, what to write


def _headers(
    kind: str,
    patches: dict[str, Sequence[Sequence[Patch]]],
    videos: Sequence[tuple[str, bytes]],
    count: int,
) -> Iterator[Poison]:
    known = [(suffix, data) for suffix, data in videos if suffix in patches]
    for number, (suffix, data) in enumerate(islice(cycle(known), count)):
        choices = patches[suffix]
        yield Poison(kind, suffix, _patched(data, choices[(number + number // len(known)) % len(choices)]))


def _patched(data: bytes, patches: Iterable[Patch]) -> bytes:
    """`data` with all that fits of `patches` written in."""
    changed = bytearray(data)
    for tag, offset, value in patches:
        place = data.rfind(tag)
        if place >= 0:
            start = place + len(tag) + offset
            changed[start : start + len(value)] = value
    return bytes(changed)


def slowed(mp4: bytes) -> bytes:
    """The same frames over hours: the header says that a tick is a second."""
    return _patched(mp4, [(b"mdhd", 12, _uint(1))])


def _uint(value: int) -> bytes:
    return struct.pack(">I", value)


_MP4_DURATIONS = (
    (b"mvhd", 16, _uint(0)),
    (b"tkhd", 20, _uint(0)),
    (b"mdhd", 16, _uint(0)),
    (b"elst", 8, _uint(0)),
)
_MP4_STILL = ((b"stts", 12, _uint(0)), (b"trun", 16, _uint(0)))
_MP4_ZERO_DURATION = (
    _MP4_DURATIONS[:1],
    _MP4_DURATIONS,
    (*_MP4_DURATIONS, *_MP4_STILL),
    _MP4_STILL,
    ((b"mvhd", 12, _uint(0)),),
    ((b"stts", 8, _uint(0)),),
)
_MKV_DURATION, _MKV_FRAME, _MKV_TICK = b"\x44\x89\x88", b"\x23\xe3\x83\x84", b"\x2a\xd7\xb1\x83"
_AVI_HEADER, _AVI_STREAM = b"avih\x38\0\0\0", b"strh\x38\0\0\0"
_ZERO_DURATION: dict[str, Sequence[Sequence[Patch]]] = {
    "mp4": _MP4_ZERO_DURATION,
    "mov": _MP4_ZERO_DURATION,
    "mkv": (
        ((_MKV_DURATION, 0, bytes(8)),),
        ((_MKV_FRAME, 0, bytes(4)),),
        ((_MKV_TICK, 0, bytes(3)),),
        ((_MKV_TICK, 0, b"\0\0\1"),),
    ),
    "avi": (
        ((_AVI_HEADER, 16, bytes(4)), (_AVI_STREAM, 32, bytes(4))),
        ((_AVI_HEADER, 0, bytes(4)), (_AVI_HEADER, 16, bytes(4)), (_AVI_STREAM, 32, bytes(4))),
        ((_AVI_STREAM, 20, bytes(4)),),
        ((_AVI_STREAM, 24, bytes(4)),),
    ),
}
_MP4_TEN_THOUSAND = (
    ((b"mdhd", 12, _uint(36_000_000)),),
    ((b"mdhd", 12, _uint(10_000)), (b"stts", 12, _uint(1)), (b"trun", 16, _uint(1))),
    ((b"stts", 12, _uint(9)), (b"trun", 16, _uint(9))),
)
_TEN_THOUSAND_FPS: dict[str, Sequence[Sequence[Patch]]] = {
    "mp4": _MP4_TEN_THOUSAND,
    "mov": _MP4_TEN_THOUSAND,
    "mkv": (
        ((_MKV_FRAME, 0, _uint(100_000)),),
        ((_MKV_FRAME, 0, _uint(100_000)), (_MKV_TICK, 0, (2500).to_bytes(3, "big"))),
    ),
    "avi": (
        ((_AVI_STREAM, 20, struct.pack("<II", 1, 10_000)),),
        ((_AVI_HEADER, 0, struct.pack("<I", 100)), (_AVI_STREAM, 20, struct.pack("<II", 1, 10_000))),
    ),
}
_ONE_PIXEL: Sequence[Sequence[Patch]] = (
    ((b"tkhd", 76, _uint(1 << 16) * 2), (b"avc1", 24, struct.pack(">HH", 1, 1))),
    ((b"avc1", 24, struct.pack(">HH", 1, 1)),),
)
