"""Check a file's first bytes before a demuxer opens it, because demuxers also follow playlists."""

from __future__ import annotations

import stat
from pathlib import Path

HEAD = 16 * 192
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"FLV": "flv",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x00\x00\x01\xba": "mpeg-ps",
}


def container(head: bytes) -> str | None:
    """The container format that a file beginning with `head` claims to be, or None."""
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if name := next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None):
        return name
    return "mpeg-ts" if any(_has_packets(head, length) for length in (188, 192)) else None


def _has_packets(head: bytes, length: int) -> bool:
    """Whether a packet of a transport stream begins every `length` bytes; the first one may be cut."""
    if len(head) > 2 * length and {head[length - 188 + i * length] for i in range(3)} == {0x47}:
        return True
    return any(
        set(head[first::length]) == {0x47} for first in range(length) if len(head) > first + 7 * length
    )


def _lacks_index(path: str) -> bool:
    """Whether an MP4 file has data but no index: a recorder writes it last, and was ended before."""
    boxes, at, size = set(), 0, Path(path).stat().st_size
    with Path(path).open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            header = file.read(16)
            kind, length = header[4:8], int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            boxes.add(kind)
            if length < 8:  # 0: up to the file's end
                break
            at += length
    return b"mdat" in boxes and not boxes & {b"moov", b"moof"}


def refusal(path: str) -> str | None:
    """Why `path` must not be opened (one sentence), or None if it is a local file of a known container."""
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            return f"{path} is not a regular file; give the path of a video file"
        with Path(path).open("rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError) as error:
        return f"{path} cannot be read as a local file: {getattr(error, 'strerror', None) or error}"
    if not head:
        return f"{path} is empty"
    kind = container(head)
    if kind == "mp4" and _lacks_index(path):
        return (
            f"{path} was cut off while it was recorded: its index (moov), which is written last, is missing; "
            "record it again, or restore it with a repair tool and another recording of the same camera"
        )
    if kind is None:
        return (
            f"{path} does not begin like a video (MP4, MOV, Matroska, WebM, AVI, MPEG-TS/PS, FLV, Ogg or ASF)"
        )
    return None
