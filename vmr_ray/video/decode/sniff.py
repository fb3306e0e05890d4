"""Check a file's first bytes before a demuxer opens it, because demuxers also follow playlists."""

from __future__ import annotations

import stat
from pathlib import Path

HEAD = 4 * 192
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
    for packet, offset in ((188, 0), (192, 4)):
        if len(head) > 2 * packet and {head[offset + i * packet] for i in range(3)} == {0x47}:
            return "mpeg-ts"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


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
    if container(head) is None:
        return (
            f"{path} does not begin like a video (MP4, MOV, Matroska, WebM, AVI, MPEG-TS/PS, FLV, Ogg or ASF)"
        )
    return None
