"""Read an annotation file: detect its format, read its rows, check each of them.

What can be kept is kept (an end past the duration is clipped). What cannot is dropped and reported with its
place, its reason and the fix.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmr_ray.annotations.activitynet import read as read_activitynet
from vmr_ray.annotations.charades_cd import read as read_charades_cd
from vmr_ray.annotations.charades_sta import read as read_charades_sta
from vmr_ray.annotations.qvhighlights import read as read_qvhighlights
from vmr_ray.annotations.rows import Row, RowProblem, check_row
from vmr_ray.annotations.tacos import read as read_tacos
from vmr_ray.annotations.text import read_text
from vmr_ray.annotations.vmr import read as read_vmr
from vmr_ray.errors import VmrError
from vmr_ray.schema import Annotation


@dataclass(frozen=True)
class Format:
    """How to recognise a format (file suffixes and a pattern in the text), and how to read it."""

    suffixes: tuple[str, ...]
    pattern: str
    read: Callable[[str], Iterator[Row | RowProblem]]
    durations: str | None = None  # name of a file in the same folder with the durations that the rows lack


# In the order in which `auto` tries them.
FORMATS = {
    "charades-sta": Format((".txt",), r"##", read_charades_sta, "charades.json"),
    "tacos": Format((".json",), r'"num_frames"\s*:', read_tacos),
    "charades-cd": Format((".json",), r'"video_duration"\s*:', read_charades_cd),
    "activitynet": Format((".json",), r'"timestamps"\s*:', read_activitynet),
    "qvhighlights": Format((".jsonl",), r'"relevant_windows"\s*:', read_qvhighlights),
    "vmr": Format((".jsonl", ".csv", ".tsv"), "", read_vmr),
}


@dataclass(frozen=True)
class Counts:
    """Numbers of rows: kept (the clipped ones included), clipped by kind and dropped by kind."""

    kept: int
    clipped: Counter[str]
    dropped: Counter[str]


@dataclass(frozen=True)
class AnnotationSet:
    """One annotation file: its usable annotations, and what was wrong with the other rows.

    `rows` are all rows in the file's order, before their check.
    """

    path: str
    format: str
    rows: list[Row | RowProblem]
    annotations: list[Annotation]
    problems: list[RowProblem]

    def counts(self) -> Counts:
        return Counts(
            len(self.annotations),
            Counter(p.kind for p in self.problems if p.action == "clipped"),
            Counter(p.kind for p in self.problems if p.action == "dropped"),
        )

    def require_whole(self) -> None:
        """Raises VmrError if a row was dropped, with the first one's line and fix and how many follow."""
        if dropped := [p for p in self.problems if p.action == "dropped"]:
            more = f" (and {len(dropped) - 1} more)" if len(dropped) > 1 else ""
            raise VmrError(f"{self.path}: {dropped[0].where}: {dropped[0].reason}{more}")


AnnotationSource = str | Path | AnnotationSet  # a file, or what was read from it


def read_annotations(
    source: AnnotationSource, format: str = "auto", durations: str | Path | None = None
) -> AnnotationSet:
    """Read one annotation file of a format in FORMATS; an AnnotationSet is returned as it is.

    Args:
        durations: a JSON file, `{video: seconds}` or `{video: {"duration": seconds}}`, for rows without a
            duration. By default Charades-STA takes `charades.json` from the file's folder.

    Raises:
        VmrError: a file is missing, empty, not UTF-8 or not of its format, or the format is unknown.
    """
    if isinstance(source, AnnotationSet):
        return source
    path = Path(source)
    format, rows = _read_rows(path, format)
    usual = path.with_name(FORMATS[format].durations or path.name)
    if durations is None and usual != path and usual.exists():
        durations = usual
    seconds = {} if durations is None else _read_durations(durations)

    result = AnnotationSet(str(path), format, rows, [], [])
    for row in rows:
        annotation, problem = (None, row) if isinstance(row, RowProblem) else check_row(row, seconds)
        if annotation is not None:
            result.annotations.append(annotation)
        if problem is not None:
            result.problems.append(problem)
    return result


def load_annotations(source: AnnotationSource) -> AnnotationSet:
    """Read the annotations to train or test on.

    In our own format a dropped row is an error, because its author can fix it. The benchmarks' files have
    known defects, so they are read leniently.

    Raises:
        VmrError: as `read_annotations`, or a row of our own format cannot be used.
    """
    result = read_annotations(source)
    if result.format == "vmr":
        result.require_whole()
    return result


def _read_rows(path: Path, format: str) -> tuple[str, list[Row | RowProblem]]:
    """The file's format and all its rows, unchecked, in order."""
    if format != "auto" and format not in FORMATS:
        raise VmrError(f"unknown annotation format {format!r}; known here: auto, {', '.join(FORMATS)}")
    text = read_text(path)
    if format == "auto":
        format = _detect_format(path, text)
    try:
        rows = list(FORMATS[format].read(text))
    except VmrError as error:
        raise VmrError(f"{path}: {error}") from None
    if not rows:
        raise VmrError(f"{path} holds no annotations: give it at least one")
    return format, rows


def _detect_format(path: Path, text: str) -> str:
    for name, known in FORMATS.items():
        if path.suffix.lower() in known.suffixes and re.search(known.pattern, text):
            return name
    raise VmrError(
        f"{path}: its annotation format is not clear from its name and content; "
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
