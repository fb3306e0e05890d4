from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmr_ray.errors import VmrError
from vmr_ray.search.metadata import as_json, read_metadata, tag


def test_rows_become_fields_by_video(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"video_id": "a", "year": 2024, "gone": null}\n\n{"video_id": "b"}\n')
    assert read_metadata(path) == {"a": {"year": 2024}, "b": {}}
    table = tmp_path / "m.csv"
    table.write_text("video_id,year\na,2024\n")
    assert read_metadata(table) == {"a": {"year": "2024"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"year": 2024}', "line 1: a row of metadata needs the text 'video_id'"),
        ('{"video_id": "a"}\n{"video_id": "a"}', "line 2: 'a' was named before"),
        ("[]", "line 1: expected an object"),
        ("{", "line 1: not JSON"),
        ('{"video_id": "a"}\n{"video_id": "b", "x": ' + "[" * 100_000, "line 2: nested too deeply"),
        ('{"video_id": "a", "x": ' + "1" * 5000 + "}", "line 1: not JSON"),
        (r'{"video_id": "\ud83d"}', "line 1: half of a surrogate pair"),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(VmrError, match=message):
        read_metadata(path)


def test_a_field_of_any_length_is_read_or_named(tmp_path: Path):
    path = tmp_path / "m.csv"
    path.write_text("video_id,text\na,x\nb," + "y" * 131_073)
    with pytest.raises(VmrError, match=r"line 3: not CSV \(field larger than field limit \(131072\)\)"):
        read_metadata(path)
    lines = tmp_path / "m.jsonl"
    lines.write_text(json.dumps({"video_id": "b \U0001f600", "text": "y" * 131_073}))
    assert len(read_metadata(lines)["b \U0001f600"]["text"]) == 131_073


def test_values_are_plain_and_their_order_does_not_count():
    assert as_json({"b": 1, "a": "é"}, "v") == as_json({"a": "é", "b": 1}, "v") == '{"a": "é", "b": 1}'
    with pytest.raises(VmrError, match="metadata of 'v': a is a list"):
        as_json({"a": [1]}, "v")  # type: ignore[dict-item]
    assert len({tag("a", value) for value in (1, "1", 1.5, True, "true")}) == 5
