from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmr_ray.annotations import read_annotations
from vmr_ray.annotations.rows import Row
from vmr_ray.errors import VmrError

FILE = Path(__file__).parents[2] / "fixtures" / "annotations" / "qvhighlights.jsonl"


def test_qvhighlights_has_several_windows_and_saliency() -> None:
    found = read_annotations(FILE)
    assert (found.format, found.problems) == ("qvhighlights", [])
    assert found.annotations[0].spans == ((2.0, 6.0), (12.0, 14.0))

    first, second = found.annotations
    assert isinstance(found.rows[0], Row) and found.rows[0].qid == 11
    assert (first.video_id, first.query) == ("pottery_0.0_20.0", "A potter shapes a bowl")
    assert first.saliency is not None and second.saliency is not None
    assert first.saliency.shape == (10, 3)
    assert first.saliency[[1, 2, 6]].tolist() == [[2, 3, 4], [1, 0, 2], [4, 4, 4]]
    assert first.saliency.sum() == 24
    assert np.flatnonzero(second.saliency.any(1)).tolist() == [9]


@pytest.mark.parametrize(
    "defect",
    [
        {"relevant_clip_ids": [1, 2, 10]},  # the video has 10 clips
        {"relevant_clip_ids": [1, 2, -1]},
        {"relevant_clip_ids": [1, 2]},
        {"relevant_clip_ids": None},
        {"saliency_scores": [[2, 3, 4], [1, 0], [4, 4, 4]]},
        {"saliency_scores": [[], [], []]},
        {"saliency_scores": "high"},
        {"duration": None},
        {"duration": 1e300},
    ],
    ids=str,
)
def test_saliency_that_does_not_fit_names_the_line(tmp_path: Path, defect: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(json.loads(FILE.read_text().splitlines()[0]) | defect))
    found = read_annotations(path)
    assert found.counts().dropped == {"unusable saliency": 1} and not found.annotations
    with pytest.raises(VmrError, match=r"a\.jsonl: line 1: no usable saliency"):
        found.require_whole()


def test_rows_without_saliency_are_kept(tmp_path: Path) -> None:
    row = json.loads(FILE.read_text().splitlines()[0])
    del row["saliency_scores"], row["relevant_clip_ids"]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    assert [a.saliency for a in read_annotations(path).annotations] == [None]


def test_saliency_does_not_change_what_identifies_a_run(tmp_path: Path) -> None:
    """The digest of a run is made of the text of its annotations, and runs of before must be found again."""
    rated = read_annotations(FILE).annotations[0]
    assert repr(rated) == repr(replace(rated, saliency=None)) and "saliency" not in repr(rated)
