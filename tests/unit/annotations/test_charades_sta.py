from __future__ import annotations

from pathlib import Path

from vmr_ray.annotations import read_annotations
from vmr_ray.schema import Annotation

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"
UP_TO = "end past the duration by up to 1 s"
OVER = "end past the duration by over 1 s"


def test_charades_sta_takes_durations_from_the_file_next_to_it() -> None:
    found = read_annotations(FIXTURES / "charades_sta.txt")
    assert (found.format, len(found.rows)) == ("charades-sta", 6)
    assert found.annotations == [
        Annotation("KITE1", "a child unrolls a kite string.", ((0.0, 6.5),), 30.0),
        Annotation("KITE1", "the child runs across a meadow.", ((4.0, 30.0),), 30.0),
        Annotation("LAMP2", "a man screws in a light bulb.", ((9.0, 18.0),), 18.0),
    ]
    counts = found.counts()
    assert counts.kept == 3
    assert counts.clipped == {OVER: 1, UP_TO: 1}
    assert counts.dropped == {"start not before end": 1, "start past the duration": 1, "malformed line": 1}
    assert [p.line for p in found.problems] == [2, 3, 4, 6, 7]


def test_charades_sta_without_durations_is_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"KITE1 4.0 31.2##the child runs.\r\nLAMP2 1 2##he waits.")
    assert read_annotations(path).annotations == [
        Annotation("KITE1", "the child runs.", ((4.0, 31.2),)),
        Annotation("LAMP2", "he waits.", ((1.0, 2.0),)),
    ]
    durations = tmp_path / "given.json"
    durations.write_text('{"KITE1": 20}')
    assert [a.duration for a in read_annotations(path, durations=durations).annotations] == [20.0, None]
