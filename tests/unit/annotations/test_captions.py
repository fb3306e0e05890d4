from __future__ import annotations

from pathlib import Path

from vmr_ray.annotations import read_annotations
from vmr_ray.schema import Annotation

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"
UP_TO = "end past the duration by up to 1 s"


def test_charades_cd() -> None:
    found = read_annotations(FIXTURES / "charades_cd.json")
    assert found.format == "charades-cd"
    assert [a.spans for a in found.annotations] == [((0.0, 6.5),), ((4.0, 30.0),)]
    assert found.problems[0].where == "KITE1, sentence 2"


def test_tacos_frames_become_seconds() -> None:
    found = read_annotations(FIXTURES / "tacos.json")
    assert found.format == "tacos"
    assert found.annotations == [
        Annotation("kitchen-a.avi", "The cook washes a leek.", ((2.0, 6.0),), 40.0),
        Annotation("kitchen-a.avi", "She slices the leek.", ((8.0, 40.0),), 40.0),
    ]
    assert found.counts().dropped == {"malformed entry": 1}
    assert found.problems[-1].where == "kitchen-b.avi"


def test_activitynet_does_not_report_rounding() -> None:
    found = read_annotations(FIXTURES / "activitynet.json")
    assert found.format == "activitynet"
    assert found.annotations == [
        Annotation("v_canoe", "Two people carry a canoe.", ((0.0, 12.5),), 40.55),
        Annotation("v_canoe", "They paddle down a river.", ((12.5, 40.55),), 40.55),
        Annotation("v_canoe", "The river bends.", ((30.0, 40.55),), 40.55),  # says 40.55000000000001
    ]
    assert found.counts().clipped == {UP_TO: 1}
    assert found.counts().dropped == {"start not before end": 1, "empty query": 1}
