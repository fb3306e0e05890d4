"""Training on captioned photos, from files to a checkpoint that ordinary videos can be asked with."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.pictures import jpeg, write_photos
from vmr_ray.annotations import load_annotations
from vmr_ray.config import Config
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore
from vmr_ray.workflows.photos import train_on_photos

COLOURS = list(itertools.product((20, 100, 170, 250), (20, 130, 250), (20, 240)))


def files_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "chunks").rglob("*.parquet"))}


def test_photos_to_a_checkpoint(cluster, features: Path, world, small: Config, tmp_path: Path):
    photos, run = write_photos(tmp_path / "photos", COLOURS), tmp_path / "run"
    (photos / "05.jpg").write_bytes(jpeg(COLOURS[5])[:200])
    calls: list[tuple[int, int]] = []
    result = train_on_photos(photos, run, small, progress=lambda *counts: calls.append(counts))
    assert result.photos == 23 and calls[-1] == (24, 24)
    assert [row.uri for row in result.unreadable] == [str(photos / "05.jpg")]
    assert result.train.ended == "epochs" and result.train.outside == result.train.without_features == 0

    # Every photo is asked about: some held out, the others trained on, in videos that are in the store.
    sets = {name: load_annotations(run / f"{name}.jsonl").annotations for name in ("train", "val")}
    numbers = {name: {int(row.query.split()[-1]) for row in rows} for name, rows in sets.items()}
    assert len(numbers["val"]) <= 8 and not numbers["train"] & numbers["val"]
    assert 5 not in numbers["train"] | numbers["val"] and len(numbers["train"]) >= 12
    store = FeatureStore.open(str(run / "moments"))
    durations = {video.video_id: video.duration for video in store}
    assert {(row.video_id, row.duration) for rows in sets.values() for row in rows} == set(durations.items())

    # The checkpoint is like any other, and the metrics of its training are those of an evaluation.
    assert evaluate(features, world.test, result.train.best).queries > 0
    held_out = evaluate(run / "moments", run / "val.jsonl", result.train.best)
    assert held_out.queries == result.train.val_queries
    for name in ("r1_at_0.5", "miou"):
        assert held_out.model[name] == pytest.approx(result.train.metrics[name])

    # The same call again embeds, composes and trains nothing.
    before = files_of(run / "photos"), files_of(run / "moments"), result.train.history
    again = train_on_photos(photos, run, small)
    assert (files_of(run / "photos"), files_of(run / "moments"), again.train.history) == before

    # Other captions are another run, of which nothing is written.
    lines = (photos / "captions.jsonl").read_text().replace("paint", "colour")
    (photos / "captions.jsonl").write_text(lines)
    with pytest.raises(VmrError, match="holds a run with other inputs"):
        train_on_photos(photos, run, small)
    assert load_annotations(run / "train.jsonl").annotations == sets["train"]

    # More damage than the settings allow is a mistake.
    for number in range(3):
        (photos / f"{number:02d}.jpg").write_bytes(b"nonsense")
    with pytest.raises(
        VmrError, match=r"4 of 24 photos cannot be read, .*embed.max_failed=0.05; the first: .*00"
    ):
        train_on_photos(photos, tmp_path / "other", small)
    assert not (tmp_path / "other" / "run.json").exists()
