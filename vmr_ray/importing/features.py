"""Precomputed features of other projects -> feature store.

Several sources are joined along their dimension, as QVHighlights' CLIP and SlowFast features are. Clip i
covers `[i * clip_seconds, (i + 1) * clip_seconds)`, or an equal share of the video's true duration. One
video is in memory at a time. What `embed` promises holds here too: a finished video is skipped unless its
files change, and one that cannot be used is quarantined with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vmr_ray.annotations import AnnotationSource, read_annotations
from vmr_ray.annotations.video_ids import resolve_ids
from vmr_ray.encoders import IMPORTED
from vmr_ray.errors import VmrError
from vmr_ray.features.store import FeatureStore, StoreSpec
from vmr_ray.importing.arrays import Source, halved, normalized, open_source
from vmr_ray.schema import Quarantined, Video

TOLERANCE = 2
_CHUNK = 512  # clips
_LOOK = 5  # videos that tell which dimension a source has

ClipSeconds = float | Literal["duration"]


@dataclass(frozen=True)
class Imported:
    """What an import did: `clips` counts this run's work, `dim` is that of the joined features.

    `without_duration` counts videos left out since no annotation tells their duration.
    """

    videos: int
    imported: int
    skipped: int
    clips: int
    dim: int
    encoder: str
    without_duration: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)


def import_features(
    sources: Sequence[str | Path],
    out: str | Path,
    clip_seconds: ClipSeconds,
    *,
    name: str | None = None,
    keys: Sequence[str | None] = (),
    annotations: Sequence[AnnotationSource] = (),
    tolerance: int = TOLERANCE,
    normalize: bool = False,
    max_clips: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Import every video of `sources` into the feature store at `out`; finished ones are skipped.

    Args:
        clip_seconds: of one clip; "duration" divides a video's duration evenly among its clips, and takes
            only videos whose duration the annotations tell.
        name: the features' name, which the store's encoder `imported:<name>` carries; by default those
            of the sources.
        keys: of the array inside a file, one for all sources or one each.
        annotations: files that tell durations; the last clip of a video then ends with it.
        tolerance: clips by which the sources, or the duration, may differ; what is too long is cut.
        normalize: rows of each source to length 1.
        max_clips: a longer video's clips are averaged, neighbours with neighbours, down to this many.
        progress: called with the videos done and the videos to do.

    Raises:
        VmrError: a source is missing or unusable, no duration is known, or the store holds other features.
    """
    if clip_seconds != "duration" and not clip_seconds > 0:
        raise VmrError(f"clip seconds are {clip_seconds}: give a number above 0, or duration")
    if len(keys) not in (0, 1, len(sources)):
        raise VmrError(f"{len(keys)} keys for {len(sources)} sources: give one for all, or one each")
    each = keys if len(keys) == len(sources) else [*keys, None][:1] * len(sources)
    opened = [open_source(path, key) for path, key in zip(sources, each, strict=True)]
    names = sorted(frozenset[str]().union(*(source.names for source in opened)))
    seconds = _durations(annotations, names)
    if clip_seconds == "duration" and not seconds:
        raise VmrError(
            "no duration of these videos is known, which clips of equal shares need: name annotation files "
            "that tell them (for Charades-STA, put charades.json beside), or give the seconds of a clip"
        )
    known = [video for video in names if clip_seconds != "duration" or video in seconds]
    dims = [_dim(source, known) for source in opened]

    settings = [f"clip_seconds={clip_seconds if clip_seconds == 'duration' else format(clip_seconds, 'g')}"]
    settings += ["normalize"] * normalize + ([f"max_clips={max_clips}"] if max_clips else [])
    label = name or "+".join(Path(source.label).stem for source in opened)
    spec = StoreSpec(f"{IMPORTED}{label}", sum(dims), ",".join(settings))
    store = FeatureStore.create(str(out), spec)

    videos = [_video(opened, video, seconds.get(video)) for video in known]
    done = store.finished(videos)
    todo = [video for video in videos if video.video_id not in done]
    store.discard_unfinished(todo)
    clips, failed = 0, []
    for count, video in enumerate(todo, start=1):
        try:
            joined = _joined(opened, dims, video.video_id, tolerance, normalize)
            edges = _edges(len(joined), clip_seconds, seconds.get(video.video_id), tolerance)
            averaged, edges = _averaged(joined[: len(edges) - 1], edges, max_clips)
            features = halved(averaged, video.uri)
        except VmrError as error:
            failed.append(Quarantined(video.video_id, video.uri, "import", str(error)))
            store.quarantine(failed[-1])
        else:
            _write(store, video, features, edges)
            clips += len(features)
        if progress:
            progress(count, len(todo))
    finished = [video for video in videos if video.video_id not in {bad.video_id for bad in failed}]
    store.forgive(video.video_id for video in finished)
    # Of a changed video that failed, the old features are better than none.
    store.delete_stale(finished)
    return Imported(
        videos=len(videos),
        imported=len(todo) - len(failed),
        skipped=len(done),
        clips=clips,
        dim=spec.dim,
        encoder=spec.encoder,
        without_duration=len(names) - len(known),
        quarantined=failed,
    )


def _durations(annotations: Iterable[AnnotationSource], names: Iterable[str]) -> dict[str, float]:
    """The duration in seconds of every video that the annotations tell one of."""
    told: dict[str, float] = {}
    for source in annotations:
        for row in read_annotations(source).annotations:
            if row.duration is not None:
                told.setdefault(row.video_id, row.duration)
    return {video: told[said] for said, video in resolve_ids(told, names).items()}


def _dim(source: Source, names: Sequence[str]) -> int:
    """The dimension that the first readable videos of a source have, most of them."""
    dims: Counter[int] = Counter()
    wrong: VmrError | None = None
    for name in names:
        if name in source.names:
            try:
                dims[source.read(name).shape[1]] += 1
            except VmrError as error:
                wrong = wrong or error
            if dims.total() == _LOOK:
                break
    if not dims:
        raise wrong or VmrError(f"{source.label} has features of none of the videos: check its file names")
    return dims.most_common(1)[0][0]


def _video(sources: Sequence[Source], name: str, duration: float | None) -> Video:
    having = [source for source in sources if name in source.names]
    prints = [source.fingerprint(name) for source in having]
    return Video(name, having[0].uri(name), " ".join([*prints, str(duration)]))


def _joined(
    sources: Sequence[Source], dims: Sequence[int], name: str, tolerance: int, normalize: bool
) -> np.ndarray:
    """float32 [T, sum of dims]; T is that of the shortest source."""
    if missing := [source.label for source in sources if name not in source.names]:
        raise VmrError(f"{', '.join(missing)} has no features of {name}: add them, or delete the others")
    found = []
    for source, dim in zip(sources, dims, strict=True):
        matrix = source.read(name)
        if matrix.shape[1] != dim:
            raise VmrError(
                f"{source.uri(name)} has {matrix.shape[1]} dimensions, other videos of {source.label} "
                f"{dim}: extract it anew"
            )
        found.append(normalized(matrix) if normalize else matrix)
    lengths = [len(matrix) for matrix in found]
    if max(lengths) - min(lengths) > tolerance:
        told = ", ".join(f"{source.label} {n}" for source, n in zip(sources, lengths, strict=True))
        raise VmrError(
            f"the sources have different numbers of clips of {name} ({told}): extract one of them anew, or "
            f"raise --tolerance, which is {tolerance}"
        )
    return np.concatenate([matrix[: min(lengths)] for matrix in found], axis=1)


def _edges(clips: int, clip_seconds: ClipSeconds, duration: float | None, tolerance: int) -> np.ndarray:
    """The bounds of the clips [T + 1] in seconds; T is less than `clips` if some begin past the duration."""
    if clip_seconds == "duration":
        assert duration is not None
        return np.linspace(0, duration, clips + 1)
    if duration is None:
        return np.arange(clips + 1) * clip_seconds
    if abs(clips * clip_seconds - duration) > (tolerance + 1) * clip_seconds:
        raise VmrError(
            f"{clips} clips of {clip_seconds:g} s do not fit the duration {duration:g} s of the annotations: "
            f"correct --clip-seconds, or raise --tolerance, which is {tolerance}"
        )
    edges = np.arange(clips) * clip_seconds
    return np.append(edges[edges < duration], duration)


def _averaged(features: np.ndarray, edges: np.ndarray, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` clips: neighbours are averaged, as evenly many as can be."""
    if most is None or len(features) <= most:
        return features, edges
    bounds = np.linspace(0, len(features), most + 1).round().astype(int)
    sums = np.add.reduceat(features, bounds[:-1], axis=0)
    return sums / np.diff(bounds)[:, None], edges[bounds]


def _write(store: FeatureStore, video: Video, features: np.ndarray, edges: np.ndarray) -> None:
    times = (edges[:-1] + edges[1:]) / 2
    for index, first in enumerate(range(0, len(features), _CHUNK)):
        last = min(first + _CHUNK, len(features))
        store.write_chunk(
            video,
            index,
            last == len(features),
            times=times[first:last],
            edges=edges[first : last + 1],
            features=features[first:last],
            duration=float(edges[-1]),
            partial=False,
        )
