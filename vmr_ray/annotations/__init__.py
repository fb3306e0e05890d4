"""Annotation files -> `Annotation` rows: one reader a format, the same checks for all of them.

A reader keeps what can be kept (an end past the duration is clipped), drops what cannot, and says
which rows and why.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmr_ray.annotations import activitynet, charades_cd, charades_sta, qvhighlights, tacos, vmr
from vmr_ray.annotations.qvhighlights import Highlight, read_highlights
from vmr_ray.annotations.rows import Problem, Row, check_row
from vmr_ray.annotations.text import read_text
from vmr_ray.errors import VmrError
from vmr_ray.schema import Annotation

__all__ = [
    "FORMATS",
    "AnnotationSet",
    "Counts",
    "Highlight",
    "Problem",
    "load_annotations",
    "read_annotations",
    "read_highlights",
    "read_rows",
    "read_strict",
]


@dataclass(frozen=True)
class Format:
    """How to tell a format (file suffixes, a pattern in its text) and how to read it."""

    suffixes: tuple[str, ...]
    pattern: str
    read: Callable[[str], Iterator[Row | Problem]]
    durations: str | None = None  # a file beside the annotations with the durations they lack


# In the order in which `auto` tries them.
FORMATS = {
    "charades-sta": Format((".txt",), r"##", charades_sta.read, "charades.json"),
    "tacos": Format((".json",), r'"num_frames"\s*:', tacos.read),
    "charades-cd": Format((".json",), r'"video_duration"\s*:', charades_cd.read),
    "activitynet": Format((".json",), r'"timestamps"\s*:', activitynet.read),
    "qvhighlights": Format((".jsonl",), r'"relevant_windows"\s*:', qvhighlights.read),
    "vmr": Format((".jsonl", ".csv"), "", vmr.read),
}


@dataclass(frozen=True)
class Counts:
    """Rows kept (clipped ones are among them), clipped by reason and dropped by reason."""

    kept: int
    clipped: Counter[str]
    dropped: Counter[str]


@dataclass
class AnnotationSet:
    """The usable annotations of one file, one a row, and what was wrong with the other rows."""

    annotations: list[Annotation]
    format: str
    rows: int
    problems: list[Problem]

    def counts(self) -> Counts:
        return Counts(
            len(self.annotations),
            Counter(p.kind for p in self.problems if p.action == "clipped"),
            Counter(p.kind for p in self.problems if p.action == "dropped"),
        )


def read_annotations(
    path: str | Path, format: str = "auto", durations: str | Path | None = None
) -> AnnotationSet:
    """Read one annotation file, of a format in FORMATS.

    `durations` is a JSON file, `{video: seconds}` or `{video: {"duration": seconds}}`, for rows that
    give none; Charades-STA finds `charades.json` beside the file by itself.

    Raises:
        VmrError: a file is missing, empty, not UTF-8 or not of its format, or the format is unknown.
    """
    path = Path(path)
    format, rows = read_rows(path, format)
    beside = path.with_name(FORMATS[format].durations or path.name)
    if durations is None and beside != path and beside.exists():
        durations = beside
    seconds = {} if durations is None else _read_durations(durations)

    found = AnnotationSet([], format, len(rows), [])
    for row in rows:
        annotation, problem = (None, row) if isinstance(row, Problem) else check_row(row, seconds)
        if annotation is not None:
            found.annotations.append(annotation)
        if problem is not None:
            found.problems.append(problem)
    return found


def read_rows(path: str | Path, format: str = "auto") -> tuple[str, list[Row | Problem]]:
    """The format of an annotation file and all its rows, unchecked, in order.

    Raises:
        VmrError: as `read_annotations`.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        raise VmrError(f"unknown annotation format {format!r}; known here: auto, {', '.join(FORMATS)}")
    text = read_text(path)
    if format == "auto":
        format = _sniff(path, text)
    try:
        rows = list(FORMATS[format].read(text))
    except VmrError as error:
        raise VmrError(f"{path}: {error}") from None
    if not rows:
        raise VmrError(f"{path} holds no annotations: give it at least one")
    return format, rows


def read_strict(
    path: str | Path, format: str = "auto", durations: str | Path | None = None
) -> list[Annotation]:
    """As `read_annotations`, but a row that cannot be used is an error; a clipped end is not.

    Raises:
        VmrError: as `read_annotations`, or the first dropped row with its line, mend and how many follow.
    """
    found = read_annotations(path, format, durations)
    if dropped := [p for p in found.problems if p.action == "dropped"]:
        more = f" (and {len(dropped) - 1} more)" if len(dropped) > 1 else ""
        raise VmrError(f"{path}: {dropped[0].where}: {dropped[0].reason}{more}")
    return found.annotations


def load_annotations(path: str | Path) -> list[Annotation]:
    """The annotations to train or test on: strict for a file of one's own, lenient for a benchmark's.

    Benchmark files have known defects, which `read_annotations` reports; one's own can be mended.

    Raises:
        VmrError: as `read_annotations`, or as `read_strict` for the format `vmr`.
    """
    found = read_annotations(path)
    return read_strict(path) if found.format == "vmr" else found.annotations


def _sniff(path: Path, text: str) -> str:
    for name, known in FORMATS.items():
        if path.suffix.lower() in known.suffixes and re.search(known.pattern, text):
            return name
    raise VmrError(
        f"{path}: its annotation format cannot be told from its name and content; "
        f"use .jsonl or .csv for your own, or name the format: {', '.join(FORMATS)}"
    )


def _read_durations(path: str | Path) -> dict[str, float]:
    try:
        entries = json.loads(read_text(path)).items()
        return {video: float(e["duration"] if isinstance(e, dict) else e) for video, e in entries}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise VmrError(
            f"{path}: no durations ({type(error).__name__}: {error}); "
            'write {"video": seconds, ...} or {"video": {"duration": seconds}, ...}'
        ) from None
