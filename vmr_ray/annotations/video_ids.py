"""Which embedded video an annotation refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from vmr_ray.errors import VmrError
from vmr_ray.schema import Annotation


def resolve_ids(names: Iterable[str], video_ids: Iterable[str]) -> dict[str, str]:
    """Annotation names -> video_ids: the same path, or one is the tail of the other, with or without suffix.

    A name may have backslashes, and letters of the other case if only one video fits then.

    `Y1HGC` and `sta/charades/Y1HGC.mp4` both match the video `charades/Y1HGC.mp4`; `b/1.mp4` never
    matches `a/1.mp4`. Names that match no video are left out.

    Raises:
        VmrError: a name fits several videos.
    """
    by_tail: dict[str, set[str]] = defaultdict(set)
    by_path: dict[str, set[str]] = defaultdict(set)
    for video_id in video_ids:
        for tail in _tails(video_id):
            by_tail[tail].add(video_id)
        for path in (video_id, _stem(video_id)):
            by_path[path].add(video_id)
    folded_tail, folded_path = _folded(by_tail), _folded(by_path)
    resolved = {}
    for name in set(names):
        plain = name if name in by_path else name.replace("\\", "/")
        matches = _matches(plain, by_path, by_tail) or _matches(plain.casefold(), folded_path, folded_tail)
        if len(matches) > 1:
            raise VmrError(
                f"the annotated video {name!r} fits several embedded videos "
                f"({', '.join(sorted(matches)[:3])}): write the full id in the annotation file"
            )
        if matches:
            resolved[name] = next(iter(matches))
    return resolved


def _matches(name: str, by_path: Mapping[str, set[str]], by_tail: Mapping[str, set[str]]) -> set[str]:
    """The videos that a name fits: the same path before a longer one, and that before a shorter one."""
    exact = by_path.get(name, set())
    matches = {name} & exact or by_tail.get(name) or by_tail.get(_stem(name)) or set()
    for tail in _tails(name):
        matches = matches or by_path.get(tail, set())
    return matches


def _folded(names: Mapping[str, set[str]]) -> dict[str, set[str]]:
    folded: dict[str, set[str]] = defaultdict(set)
    for name, video_ids in names.items():
        folded[name.casefold()] |= video_ids
    return folded


def by_video(rows: Sequence[Annotation], video_ids: Collection[str]) -> dict[str, list[Annotation]]:
    """video_id -> its annotations in their order; those whose name matches no video are left out.

    Raises:
        VmrError: a name fits several videos.
    """
    ids = resolve_ids((row.video_id for row in rows), video_ids)
    groups: dict[str, list[Annotation]] = {}
    for row in rows:
        if row.video_id in ids:
            groups.setdefault(ids[row.video_id], []).append(row)
    return groups


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _tails(name: str) -> list[str]:
    """`a/b.mp4` -> a/b.mp4, a/b, b.mp4, b."""
    parts = PurePosixPath(name).parts
    paths = [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]
    return [form for path in paths for form in dict.fromkeys((path, _stem(path)))]
