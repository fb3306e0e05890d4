from __future__ import annotations

from pathlib import Path

import pytest

from vmr_ray.annotations import load_annotations, read_annotations
from vmr_ray.errors import VmrError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"
OVER = "end past the duration by over 1 s"


def test_every_broken_row_has_its_line_and_fix() -> None:
    found = read_annotations(FIXTURES / "broken.csv")
    assert (len(found.rows), len(found.annotations)) == (13, 2)
    assert [(p.line, p.action, p.kind, p.reason) for p in found.problems] == [
        (3, "dropped", "start not before end", "start 9.0 is not before end 4.0: swap them"),
        (4, "dropped", "not finite", "start is nan: give a finite number of seconds"),
        (5, "dropped", "negative start", "start -1.0 is negative: count seconds from the video's beginning"),
        (6, "dropped", "not a number", "start '00:01:05' is not a number: give seconds, for example 12.5"),
        (7, "dropped", "empty query", "query is empty: fill it in, or delete the row"),
        (
            8,
            "dropped",
            "wrong number of values",
            "6 values for 5 columns: put a query that holds a comma in double quotes",
        ),
        (9, "clipped", OVER, "end 75.0 is past the video's duration 60.0: it was set to the duration"),
        (
            10,
            "dropped",
            "start past the duration",
            "start 60.0 is not within the video's duration 60.0: correct one of them",
        ),
        (11, "dropped", "empty video", "video is empty: fill it in, or delete the row"),
        (12, "dropped", "start not before end", "start and end are both 5.0: give the moment a length"),
        (13, "dropped", "missing end", "end is missing: give it in seconds"),
        (
            14,
            "dropped",
            "bad duration",
            "duration 0.0 is not above 0: give the video's length in seconds",
        ),
    ]
    with pytest.raises(VmrError) as error:
        load_annotations(FIXTURES / "broken.csv")
    expected = f"{FIXTURES / 'broken.csv'}: line 3: start 9.0 is not before end 4.0: swap them (and 10 more)"
    assert str(error.value) == expected
