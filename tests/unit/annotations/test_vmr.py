from __future__ import annotations

from pathlib import Path

import pytest

from vmr_ray.annotations import RowProblem, load_annotations, read_annotations
from vmr_ray.annotations.rows import Row
from vmr_ray.annotations.vmr import read
from vmr_ray.schema import Annotation

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"


def test_own_format_as_jsonl_and_csv() -> None:
    found = read_annotations(FIXTURES / "vmr.jsonl")
    assert found.format == "vmr"
    assert found.annotations == [
        Annotation("garden.mp4", "a hedgehog drinks", ((3.0, 8.5),), 60.0),
        Annotation("garden.mp4", "the gate swings", ((0.0, 2.0), (40.5, 60.0)), 60.0),
        Annotation("street.mp4", "a tram passes", ((12.0, 19.5),)),
    ]
    assert [(p.line, p.action) for p in found.problems] == [(2, "clipped")]
    assert load_annotations(FIXTURES / "vmr.jsonl").annotations == found.annotations

    assert load_annotations(FIXTURES / "vmr.csv").annotations == [
        Annotation("garden.mp4", "a hedgehog, thirsty, drinks", ((3.0, 8.5),), 60.0),
        Annotation("street.mp4", "a tram passes", ((12.0, 19.5),)),
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"query": "a", "start": 1, "end": 2}', "empty video"),
        ('{"video": 7, "query": "a", "start": 1, "end": 2}', "video not text"),
        ('{"video": "v", "query": "  ", "start": 1, "end": 2}', "empty query"),
        ('{"video": "v", "query": "a", "end": 2}', "missing start"),
        ('{"video": "v", "query": "a", "start": true, "end": 2}', "not a number"),
        ('{"video": "v", "query": "a", "start": [1], "end": 2}', "not a number"),
        ('{"video": "v", "query": "a", "start": 1, "end": 1' + "0" * 400 + "}", "not a number"),
        ('{"video": "v", "query": "a", "start": 1, "end": Infinity}', "not finite"),
        ('{"video": "v", "query": "a", "spans": []}', "no moment"),
        ('{"video": "v", "query": "a", "spans": [[1, 2], [4, 3]]}', "start not before end"),
        ('{"video": "v", "query": "a", "spans": [[1, 2, 3]]}', "span not a pair"),
        ('{"video": "v", "query": "a", "start": 1, "end": 2, "duration": "long"}', "not a number"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_broken_jsonl_lines(tmp_path: Path, line: str, kind: str) -> None:
    good = '{"video": "v", "query": "a", "start": 1, "end": 2}'
    path = tmp_path / "a.jsonl"
    path.write_text(f"{good}\n\n{line}\n")
    found = read_annotations(path)
    assert [(p.line, p.kind) for p in found.problems] == [(3, kind)]
    assert found.annotations == [Annotation("v", "a", ((1.0, 2.0),))]
    assert len(found.rows) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Video;Query;Start;End\na.mp4;a dog, a cat;1,5;3\n",
        "VIDEO\tquery\tstart\tend\na.mp4\ta dog, a cat\t1.5\t3\n",
        'sep=,\r\nvideo,query,start,end\r\na.mp4,"a dog, a cat",1.5,3\r\n',
        'SEP=;\nvideo;query;start;end\na.mp4;"a dog, a cat";1.5;3\n',
    ],
)
def test_what_spreadsheets_write(text: str):
    (row,) = read(text)
    assert isinstance(row, Row)
    assert (row.video, row.query) == ("a.mp4", "a dog, a cat")
    assert [float(second) for second in row.spans[0]] == [1.5, 3]


def test_lines_are_counted_from_the_separators_line():
    (problem,) = read("sep=;\nvideo;query;start;end\na;b;c\n")
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.where) == (3, "line 3")
    assert "a semicolon in double quotes" in problem.reason
