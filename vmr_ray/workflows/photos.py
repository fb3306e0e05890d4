"""Captioned photos -> checkpoint: photos are embedded and composed into videos, on which training then works.

OUT/photos           features of each photo's views; they are kept, so a rerun embeds new photos only
OUT/moments          the feature store of the composed videos
OUT/train.jsonl      their annotations, and those of the held-out photos
OUT/val.jsonl
the rest of OUT      as of any other training
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmr_ray.annotations import AnnotationSet
from vmr_ray.config import Config
from vmr_ray.errors import VmrError
from vmr_ray.photos.compose import SHOTS
from vmr_ray.photos.embed import Progress, embed_photos, photo_entry
from vmr_ray.photos.files import read_photos
from vmr_ray.photos.store import plan, write_compositions
from vmr_ray.schema import Annotation, Quarantined
from vmr_ray.storage import absolute, filesystem, join, write_bytes
from vmr_ray.training.prepare import split
from vmr_ray.training.train import Report, TrainResult, claim_run, run_inputs, train
from vmr_ray.video.decode.sampling import Sampling

_PASSES = 2  # appearances of a photo in the composed videos


@dataclass(frozen=True)
class PhotosResult:
    """The result of the training, the photos that it used, and those that could not be read."""

    train: TrainResult
    photos: int
    unreadable: list[Quarantined]


def train_on_photos(
    photos: str | Path,
    out: str | Path,
    config: Config | None = None,
    captions: Path | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> PhotosResult:
    """Train on captioned photos; the same call resumes an interrupted run.

    Args:
        photos, captions: as `read_photos` takes them.
        config: a share `train.val_fraction` of the photos is held out to validate on.
        report: called with the metrics of every epoch.
        progress: called with the number of photos embedded and the number of photos.

    Raises:
        VmrError: the photos or captions cannot be used, the sampling is not fps=X, or `out` holds a run with
            other settings or photos.
    """
    config = config or Config()
    sampling = config.embed.decode.sampling
    if Sampling.parse(sampling).kind != "fps":
        raise VmrError(
            f"embed.decode.sampling={sampling} has no meaning for photos: choose fps=X, such as fps=1"
        )
    captioned = read_photos(Path(photos), captions)
    _check_count(len(captioned), photos)
    root = absolute(out)

    # Embed the photos. One of the same content twice has the captions of both.
    views, unreadable = embed_photos(captioned, join(root, "photos"), config.embed, progress)
    missing = {row.video_id for row in unreadable}
    entries, sentences = {}, dict[str, tuple[str, ...]]()
    for photo in captioned:
        entry = photo_entry(photo)
        if entry.video_id not in missing:
            entries[entry.video_id] = entry
            sentences[entry.video_id] = sentences.get(entry.video_id, ()) + photo.captions
    _check_count(len(entries), photos)

    # Compose videos.
    parts = dict(
        zip(("train", "val"), split(sentences, config.train.val_fraction, config.train.seed), strict=True)
    )
    while len(parts["val"]) < SHOTS[1]:
        key = min(parts["train"])
        parts["val"][key] = parts["train"].pop(key)
    plans = {
        name: plan(name, part, _PASSES if name == "train" else 1, config.train.seed)
        for name, part in parts.items()
    }
    moments = join(root, "moments")
    annotations = {name: rows for name, (_, rows) in plans.items()}
    inputs = run_inputs(filesystem(moments)[1], annotations["train"], annotations["val"])
    claim_run(root, config, inputs)  # before anything of an earlier run is replaced
    sets = {name: _write_annotations(join(root, f"{name}.jsonl"), rows) for name, rows in annotations.items()}
    compositions = [composition for videos, _ in plans.values() for composition in videos]
    write_compositions(compositions, views, entries, moments, sampling)

    result = train(moments, sets["train"], root, config, sets["val"], report)
    return PhotosResult(result, len(entries), unreadable)


def _check_count(photos: int, source: str | Path) -> None:
    if photos < 2 * SHOTS[1]:
        raise VmrError(
            f"{source} has {photos} captioned photos that can be read: at least {2 * SHOTS[1]} are needed, "
            "half of them to validate on"
        )


def _write_annotations(path: str, rows: Sequence[Annotation]) -> AnnotationSet:
    lines = [
        {"video": row.video_id, "query": row.query, "spans": row.spans, "duration": row.duration}
        for row in rows
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_bytes(path, text.encode())
    return AnnotationSet(path, "vmr", [], list(rows), [])
