"""Is an annotation file usable? Which rows are not, why, and which of its videos have features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmr_ray.annotations import Problem, read_annotations
from vmr_ray.annotations.video_ids import resolve_ids
from vmr_ray.features import FeatureStore


@dataclass(frozen=True)
class Report:
    """What an annotation file holds; rows are kept (clipped ones among them) or dropped.

    `with_features` and `without_features` are its videos by name, None if no store was given.
    """

    file: str
    format: str
    rows: int
    kept: int
    clipped: dict[str, int]
    dropped: dict[str, int]
    problems: list[Problem]
    videos: int
    with_features: list[str] | None = None
    without_features: list[str] | None = None

    @property
    def usable(self) -> bool:
        return not self.dropped


def report(path: str | Path, features: str | Path | None = None, format: str = "auto") -> Report:
    """Check every row of an annotation file and, with `features`, look its videos up in that store.

    Raises:
        VmrError: the file cannot be read, there is no store, or a name fits several videos of it.
    """
    found = read_annotations(path, format)
    counts = found.counts()
    names = {annotation.video_id for annotation in found.annotations}
    there = None
    if features is not None:
        there = resolve_ids(names, FeatureStore.open(str(features)).video_ids())
    return Report(
        file=str(path),
        format=found.format,
        rows=found.rows,
        kept=counts.kept,
        clipped=dict(counts.clipped),
        dropped=dict(counts.dropped),
        problems=found.problems,
        videos=len(names),
        with_features=None if there is None else sorted(there),
        without_features=None if there is None else sorted(names - set(there)),
    )
