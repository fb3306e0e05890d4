"""A text file, or one sentence on why it cannot be read."""

from __future__ import annotations

from pathlib import Path

from vmr_ray.errors import VmrError


def read_text(path: str | Path) -> str:
    """The file as UTF-8, with or without a byte order mark.

    Raises:
        VmrError: the file is missing, unreadable, not UTF-8, or empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise VmrError(f"cannot read the annotations {path}: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise VmrError(f"{path}: line {line}: not UTF-8 text: save the file as UTF-8") from None
    if not text.strip():
        raise VmrError(f"{path} is empty: give it at least one annotation")
    return text
