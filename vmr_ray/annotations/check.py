"""The check of an annotation file: which rows are unusable and why, and which of its videos are embedded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vmr_ray.annotations.files import read_annotations
from vmr_ray.annotations.rows import RowProblem
from vmr_ray.annotations.video_ids import resolve_ids


@dataclass(frozen=True)
class AnnotationCheck:
    """What an annotation file holds; a row is kept (clipped ones included) or dropped.

    `with_features` and `without_features` are the names of its videos, None if no features were given.
    """

    file: str
    format: str
    rows: int
    kept: int
    clipped: dict[str, int]
    dropped: dict[str, int]
    problems: list[RowProblem]
    videos: int
    with_features: list[str] | None = None
    without_features: list[str] | None = None

    @property
    def usable(self) -> bool:
        """Whether no row was dropped."""
        return not self.dropped


def check_annotations(
    path: str | Path, video_ids: Collection[str] | None = None, format: str = "auto"
) -> AnnotationCheck:
    """Check every row of an annotation file and, with `video_ids` of a feature store, look its videos up.

    Raises:
        VmrError: the file cannot be read, or a name in it fits several of `video_ids`.
    """
    annotations = read_annotations(path, format)
    counts = annotations.counts()
    names = {annotation.video_id for annotation in annotations.annotations}
    embedded = None if video_ids is None else resolve_ids(names, video_ids)
    return AnnotationCheck(
        file=str(path),
        format=annotations.format,
        rows=len(annotations.rows),
        kept=counts.kept,
        clipped=dict(counts.clipped),
        dropped=dict(counts.dropped),
        problems=annotations.problems,
        videos=len(names),
        with_features=None if embedded is None else sorted(embedded),
        without_features=None if embedded is None else sorted(names - set(embedded)),
    )
