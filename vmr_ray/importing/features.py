"""Precomputed features of other projects -> feature store.

Several sources are joined along their dimension, as the CLIP and SlowFast features of QVHighlights are. Clip
i covers `[i * clip_seconds, (i + 1) * clip_seconds)`, or an equal share of the video's true duration. One
video is in memory at a time. As with `embed`, a finished video is skipped unless its files change, and one
that cannot be used is quarantined with the reason.
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
from vmr_ray.features import FeatureStore
from vmr_ray.importing.arrays import Source, halved, normalized, open_source
from vmr_ray.schema import Chunk, Quarantined, StoreSpec, Video

TOLERANCE = 2  # clips
_CHUNK_CLIPS = 512
_PROBED_VIDEOS = 5  # to find the dimension of a source

ClipSeconds = float | Literal["duration"]


@dataclass(frozen=True)
class Imported:
    """What an import did: `clips` counts this run's work, `dim` is that of the joined features.

    `without_duration` counts videos that were left out because no annotation has their duration.
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
        clip_seconds: length of a clip; "duration" divides a video's duration evenly among its clips, and
            takes only videos whose duration is in the annotations.
        name: the features' name, as in the store's encoder `imported:<name>`; default: the sources' names.
        keys: of the array inside a file, one for all sources or one each.
        annotations: files with the videos' durations; a video's last clip then ends at its duration.
        tolerance: clips by which the sources, or the duration, may differ; what is too long is cut.
        normalize: scale the rows of each source to length 1.
        max_clips: the clips of a longer video are averaged, neighbours together, down to this number.
        progress: called with the number of videos done and the number of videos to do.

    Raises:
        VmrError: a source is missing or unusable, no duration is known, or the store holds other features.
    """
    if clip_seconds != "duration" and not clip_seconds > 0:
        raise VmrError(f"clip seconds are {clip_seconds}: give a number above 0, or duration")
    arrays = _open_sources(sources, keys)
    names = sorted(frozenset[str]().union(*(source.names for source in arrays)))
    durations = _durations(annotations, names)
    if clip_seconds == "duration":
        if not durations:
            raise VmrError(
                "no duration of these videos is known, which clips of equal shares need: name annotation "
                "files with durations (for Charades-STA, put charades.json into their folder), or give the "
                "seconds of a clip"
            )
        usable = [video for video in names if video in durations]
    else:
        usable = names
    importer = _Importer(arrays, usable, durations, clip_seconds, tolerance, normalize, max_clips)
    label = name or "+".join(Path(source.label).stem for source in arrays)
    store = FeatureStore.create(str(out), importer.spec(label))

    videos = [importer.video(video) for video in usable]
    done = store.finished(videos)
    todo = [video for video in videos if video.video_id not in done]
    store.discard_unfinished(todo)
    clips, failed = 0, []
    for count, video in enumerate(todo, start=1):
        try:
            features, edges = importer.read(video)
        except VmrError as error:
            failed.append(Quarantined(video.video_id, video.uri, "import", str(error)))
            store.quarantine.add(failed[-1])
        else:
            _write(store, video, features, edges)
            clips += len(features)
        if progress:
            progress(count, len(todo))
    failed_ids = {row.video_id for row in failed}
    finished = [video for video in videos if video.video_id not in failed_ids]
    store.quarantine.clear(video.video_id for video in finished)
    # If a changed video failed, its old features are better than none.
    store.delete_stale(finished)
    return Imported(
        videos=len(videos),
        imported=len(todo) - len(failed),
        skipped=len(done),
        clips=clips,
        dim=store.spec.dim,
        encoder=store.spec.encoder,
        without_duration=len(names) - len(usable),
        quarantined=failed,
    )


def _open_sources(paths: Sequence[str | Path], keys: Sequence[str | None]) -> list[Source]:
    """Every source with its key; `keys` has none, one for all, or one each."""
    if len(keys) not in (0, 1, len(paths)):
        raise VmrError(f"{len(keys)} keys for {len(paths)} sources: give one for all, or one each")
    key_of_each = keys if len(keys) == len(paths) else [*keys, None][:1] * len(paths)
    return [open_source(path, key) for path, key in zip(paths, key_of_each, strict=True)]


def _durations(annotations: Iterable[AnnotationSource], names: Iterable[str]) -> dict[str, float]:
    """The duration in seconds of every video that has one in the annotations."""
    annotated: dict[str, float] = {}
    for source in annotations:
        for row in read_annotations(source).annotations:
            if row.duration is not None:
                annotated.setdefault(row.video_id, row.duration)
    return {video: annotated[name] for name, video in resolve_ids(annotated, names).items()}


class _Importer:
    """Reads the features of one video after the other from all sources."""

    def __init__(
        self,
        sources: Sequence[Source],
        names: Sequence[str],
        durations: dict[str, float],
        clip_seconds: ClipSeconds,
        tolerance: int,
        normalize: bool,
        max_clips: int | None,
    ):
        self._sources, self._durations = sources, durations
        self._clip_seconds, self._tolerance = clip_seconds, tolerance
        self._normalize, self._max_clips = normalize, max_clips
        self._dims = [_dim(source, names) for source in sources]

    def spec(self, label: str) -> StoreSpec:
        """The spec of the store; features that were cut or scaled differently get another one."""
        seconds = "duration" if self._clip_seconds == "duration" else format(self._clip_seconds, "g")
        settings = [f"clip_seconds={seconds}"]
        if self._normalize:
            settings.append("normalize")
        if self._max_clips:
            settings.append(f"max_clips={self._max_clips}")
        return StoreSpec(f"{IMPORTED}{label}", sum(self._dims), ",".join(settings))

    def video(self, name: str) -> Video:
        """The video; its fingerprint changes with the files of any source, and with the duration."""
        sources = [source for source in self._sources if name in source.names]
        fingerprints = [source.fingerprint(name) for source in sources]
        fingerprint = " ".join([*fingerprints, str(self._durations.get(name))])
        return Video(name, sources[0].uri(name), fingerprint)

    def read(self, video: Video) -> tuple[np.ndarray, np.ndarray]:
        """Features float16 [T, dim] and the edges [T + 1] of their clips in seconds.

        Raises:
            VmrError: the sources do not fit each other or the duration, or one of them cannot be used.
        """
        joined = self._joined(video.video_id)
        duration = self._durations.get(video.video_id)
        edges = _edges(len(joined), self._clip_seconds, duration, self._tolerance)
        averaged, edges = _averaged(joined[: len(edges) - 1], edges, self._max_clips)
        return halved(averaged, video.uri), edges

    def _joined(self, name: str) -> np.ndarray:
        """float32 [T, sum of dims]; T is that of the shortest source."""
        if missing := [source.label for source in self._sources if name not in source.names]:
            raise VmrError(f"{', '.join(missing)} has no features of {name}: add them, or delete the others")
        matrices = []
        for source, dim in zip(self._sources, self._dims, strict=True):
            matrix = source.read(name)
            if matrix.shape[1] != dim:
                raise VmrError(
                    f"{source.uri(name)} has {matrix.shape[1]} dimensions, other videos of {source.label} "
                    f"{dim}: extract it again"
                )
            matrices.append(normalized(matrix) if self._normalize else matrix)
        lengths = [len(matrix) for matrix in matrices]
        if max(lengths) - min(lengths) > self._tolerance:
            counts = ", ".join(f"{s.label} {n}" for s, n in zip(self._sources, lengths, strict=True))
            raise VmrError(
                f"the sources have different numbers of clips of {name} ({counts}): extract one of them "
                f"again, or raise --tolerance, which is {self._tolerance}"
            )
        return np.concatenate([matrix[: min(lengths)] for matrix in matrices], axis=1)


def _dim(source: Source, names: Sequence[str]) -> int:
    """The most frequent dimension among the first readable videos of a source."""
    dims: Counter[int] = Counter()
    first_error: VmrError | None = None
    for name in names:
        if name in source.names:
            try:
                dims[source.read(name).shape[1]] += 1
            except VmrError as error:
                first_error = first_error or error
            if dims.total() == _PROBED_VIDEOS:
                break
    if not dims:
        message = f"{source.label} has features of none of the videos: check its file names"
        raise first_error or VmrError(message)
    return dims.most_common(1)[0][0]


def _edges(clips: int, clip_seconds: ClipSeconds, duration: float | None, tolerance: int) -> np.ndarray:
    """The edges of the clips [T + 1] in seconds; T < `clips` if some clips begin after the duration."""
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


def _averaged(
    features: np.ndarray, edges: np.ndarray, max_clips: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features and edges of at most `max_clips` clips: averages of about equally many neighbours."""
    if max_clips is None or len(features) <= max_clips:
        return features, edges
    bounds = np.linspace(0, len(features), max_clips + 1).round().astype(int)
    sums = np.add.reduceat(features, bounds[:-1], axis=0)
    return sums / np.diff(bounds)[:, None], edges[bounds]


def _write(store: FeatureStore, video: Video, features: np.ndarray, edges: np.ndarray) -> None:
    """Write a video in chunks; `features` [T, dim], `edges` [T + 1]."""
    times = (edges[:-1] + edges[1:]) / 2
    for index, first in enumerate(range(0, len(features), _CHUNK_CLIPS)):
        stop = min(first + _CHUNK_CLIPS, len(features))
        chunk = Chunk(
            index,
            last=stop == len(features),
            duration=float(edges[-1]),
            times=times[first:stop],
            edges=edges[first : stop + 1],
            damage="",
        )
        store.write_chunk(video, chunk, features[first:stop])
